"""Find pictures that occur under several file names, and keep each picture in one part."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acuity.objectives.atomic_write import write_atomically
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.split import EXCLUDED, Split

_MIDDLE_BYTES = 4096
"""Bytes from the middle of a picture that are compared first. Only pictures with equal middles are compared whole."""


@dataclass(frozen=True)
class DuplicateCounts:
    """Counts of pictures that occur more than once."""

    pictures: int
    """Distinct pictures that occur more than once."""
    images: int
    """All images of these pictures."""
    pictures_of_several_patients: int
    pictures_with_different_labels: int
    left_out: int
    """Images that are excluded, since an earlier part has the same picture."""


def find_cached_duplicates(pixels: np.ndarray, *, bad: Collection[int] = ()) -> list[list[int]]:
    """As `find_duplicates`, for an array of the cache. The result is kept in a file beside the array's file."""
    assert isinstance(pixels, np.memmap)
    array = Path(str(pixels.filename))
    path = array.with_suffix(".repeats.json")
    status = array.stat()
    identity = [status.st_size, status.st_mtime_ns, *sorted(bad)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        if kept["array"] == identity:
            return [[int(row) for row in rows] for rows in kept["repeats"]]
    duplicates = find_duplicates(pixels, bad=bad)
    with contextlib.suppress(OSError):  # In a read-only folder every process computes the duplicates.
        write_atomically(path, json.dumps({"array": identity, "repeats": duplicates}).encode())
    return duplicates


def find_duplicates(pixels: np.ndarray, *, bad: Collection[int] = ()) -> list[list[int]]:
    """The rows, ascending, of each picture that occurs more than once. Rows of one grey level are no pictures.

    pixels: uint8 [N, R, R]. bad: rows without a picture.
    """
    flat = pixels.reshape(len(pixels), -1)
    start = max(0, (flat.shape[1] - _MIDDLE_BYTES) // 2)
    candidates = _equal_rows(flat[:, start : start + _MIDDLE_BYTES], sorted(set(range(len(flat))).difference(bad)))
    groups = (group for rows in candidates for group in _equal_rows(flat, rows))
    return sorted(group for group in groups if flat[group[0]].min() < flat[group[0]].max())


def patients_sharing_pictures(index: ImageIndex, duplicates: Sequence[Sequence[int]]) -> list[set[str]]:
    """Groups of patients with a common picture, for `read_or_make_split`."""
    patients = index.table["patient"]
    groups = ({str(patients.iat[row]) for row in rows} for rows in duplicates)
    return [group for group in groups if len(group) > 1]


def duplicates_across_parts(split: Split, duplicates: list[list[int]]) -> np.ndarray:
    """int64: the rows to exclude so that each picture is in one part, the first part that has it."""
    later = [row for rows in duplicates for row in rows if split.part[row] not in (split.part[rows].min(), EXCLUDED)]
    return np.array(sorted(later), dtype=np.int64)


def count_duplicates(index: ImageIndex, split: Split, duplicates: list[list[int]]) -> DuplicateCounts:
    """Counts for a report. split: before `exclude_rows`."""
    return DuplicateCounts(
        pictures=len(duplicates),
        images=sum(len(rows) for rows in duplicates),
        pictures_of_several_patients=len(patients_sharing_pictures(index, duplicates)),
        pictures_with_different_labels=sum(
            len(np.unique(np.nan_to_num(index.targets[rows], nan=-1), axis=0)) > 1 for rows in duplicates
        ),
        left_out=len(duplicates_across_parts(split, duplicates)),
    )


def _equal_rows(flat: np.ndarray, rows: Iterable[int]) -> list[list[int]]:
    """Groups of two or more of the rows with equal bytes."""
    by_digest: dict[bytes, list[int]] = {}
    for row in rows:
        by_digest.setdefault(hashlib.blake2b(flat[row].tobytes(), digest_size=16).digest(), []).append(row)
    return [group for group in by_digest.values() if len(group) > 1]
