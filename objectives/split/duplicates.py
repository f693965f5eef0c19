"""Exact repeats: one picture under several names, which must not be learnt from and judged on."""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.split import LEFT_OUT, Split

_MIDDLE_BYTES = 4096
"""Of each picture, read for all of them; the whole only of those that are alike there."""


@dataclass(frozen=True)
class RepeatCounts:
    """What a person wants to know of the repeats."""

    pictures: int
    """That occur more than once."""
    images: int
    """All of their copies."""
    pictures_of_several_patients: int
    pictures_with_different_labels: int
    left_out: int
    """Copies that would have been in a later part than another copy."""


def find_repeats(pixels: np.ndarray, *, bad: Collection[int] = ()) -> list[list[int]]:
    """The rows of each picture that occurs more than once, ascending.

    pixels: uint8 [N, R, R]; bad: rows without a picture.
    """
    flat = pixels.reshape(len(pixels), -1)
    start = max(0, (flat.shape[1] - _MIDDLE_BYTES) // 2)
    alike = _groups(flat[:, start : start + _MIDDLE_BYTES], sorted(set(range(len(flat))).difference(bad)))
    return sorted(group for rows in alike for group in _groups(flat, rows))


def find_repeats_once(pixels: np.ndarray, *, bad: Collection[int] = ()) -> list[list[int]]:
    """The repeats of a cached array, kept beside its file, so that the next process need not read the array."""
    assert isinstance(pixels, np.memmap)
    array = Path(str(pixels.filename))
    known = array.with_suffix(".repeats.json")
    status = array.stat()
    of_array = [status.st_size, status.st_mtime_ns, *sorted(bad)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(known.read_text())
        if kept["array"] == of_array:
            return [[int(row) for row in rows] for rows in kept["repeats"]]
    repeats = find_repeats(pixels, bad=bad)
    temporary = known.with_name(f".{known.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a folder that may only be read: the next one looks again
        temporary.write_text(json.dumps({"array": of_array, "repeats": repeats}))
        temporary.replace(known)
    return repeats


def patients_together(index: ImageIndex, repeats: list[list[int]]) -> list[set[str]]:
    """Patients who share a picture, for `read_or_make_split`."""
    patients = index.table["patient"]
    shared = ({str(patients.iat[row]) for row in rows} for rows in repeats)
    return [group for group in shared if len(group) > 1]


def repeats_across_parts(split: Split, repeats: list[list[int]]) -> np.ndarray:
    """int64: the rows to leave out, so that no picture is in two parts: copies stay in the first part that has one."""
    later = [row for rows in repeats for row in rows if split.part[row] not in (split.part[rows].min(), LEFT_OUT)]
    return np.array(sorted(later), dtype=np.int64)


def count_repeats(index: ImageIndex, split: Split, repeats: list[list[int]]) -> RepeatCounts:
    """Counts for a report; split: before `leave_out`."""
    return RepeatCounts(
        pictures=len(repeats),
        images=sum(len(rows) for rows in repeats),
        pictures_of_several_patients=len(patients_together(index, repeats)),
        pictures_with_different_labels=sum(
            len(np.unique(np.nan_to_num(index.targets[rows], nan=-1), axis=0)) > 1 for rows in repeats
        ),
        left_out=len(repeats_across_parts(split, repeats)),
    )


def _groups(flat: np.ndarray, rows: Iterable[int]) -> list[list[int]]:
    """Those of the rows that have an equal one, together."""
    by_digest: dict[bytes, list[int]] = {}
    for row in rows:
        by_digest.setdefault(hashlib.blake2b(flat[row].tobytes(), digest_size=16).digest(), []).append(row)
    return [group for group in by_digest.values() if len(group) > 1]
