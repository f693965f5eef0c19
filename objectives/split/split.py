"""The split of patients into training, validation and test: made once for an image set, later only extended.

The split lies in a file beside the index. Labels, filters and images that are added later move no patient.
"""

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.assignment import assign_new_patients, units_of_rows
from acuity.objectives.split.file import PARTS, SplitFile, parts_digest, read_split_file, write_lock, write_split_file
from acuity.objectives.split.published import TRAIN_VAL

EXCLUDED = len(PARTS)
"""Value of `Split.part` for an image that no part uses."""


@dataclass(frozen=True, eq=False)
class Split:
    """The part of each image of an index."""

    path: Path
    part: np.ndarray
    """uint8 [N], in the index's order: position in PARTS, or EXCLUDED."""
    sha256: str
    """SHA-256 of this index's patients and their parts, sorted by patient."""
    whole_sha256: str
    """SHA-256 of patients and parts of the index before filters: the same for every filter."""
    unused_sha256: str = ""
    """SHA-256 of the rows that `exclude_rows` excluded. Empty if it excluded none."""
    unit: Literal["patient", "file"] = "patient"
    """The unit that is in one part only: "patient", or "file" if single images were split."""

    def rows(self, part: str) -> np.ndarray:
        """int64: the rows of a part, ascending."""
        return np.flatnonzero(self.part == PARTS.index(part)).astype(np.int64)


def read_or_make_split(
    index: ImageIndex,
    *,
    path: Path,
    published: Mapping[str, str] | None = None,
    keep_together: Sequence[Collection[str]] = (),
    seed: int = 0,
    fractions: Sequence[float] = (0.64, 0.16, 0.20),
    unit: Literal["patient", "file"] = "patient",
    write: bool = True,
) -> Split:
    """Read the split from the file at path. Make the file if it does not exist; append patients that it lacks.

    published: from `published_parts`. keep_together: groups of patients that share a picture; those that are not in the
    file yet get one part. seed and fractions apply to a new file; an existing file keeps its own. A last fraction of 0
    makes no test part. All labels of the index are stratified together. unit="file" splits single images.
    write=False computes the split and writes no file. InputError if the file is damaged, cannot be written or
    contradicts the published parts.
    """
    published = published or {}
    split_file = _read(path, published)
    patients = units_of_rows(index, unit)
    names = patients.unique()
    if split_file is None or not set(names) <= split_file.parts.keys():
        with write_lock(path) if write else contextlib.nullcontext():
            split_file = _read(path, published) or SplitFile(seed, tuple(fractions), parts={})
            new = assign_new_patients(index, split_file, published=published, keep_together=keep_together, unit=unit)
            if new:
                split_file = replace(split_file, parts=split_file.parts | new)
                if write:
                    write_split_file(path, split_file)
    parts = {patient: split_file.parts[patient] for patient in names}
    digest = parts_digest(parts)
    part = patients.map(parts).to_numpy(np.uint8)
    return Split(path=path, part=part, sha256=digest, whole_sha256=digest, unit=unit)


def take_split(split: Split, index: ImageIndex, rows: np.ndarray) -> Split:
    """The split of a part of the rows. index: the index of these rows alone."""
    part = split.part[rows]
    digest = parts_digest(dict(zip(units_of_rows(index, split.unit), part.tolist(), strict=True)))
    return replace(split, part=part, sha256=digest)


def exclude_rows(split: Split, rows: np.ndarray) -> Split:
    """The split with these images in no part. Their patients keep their part."""
    part = split.part.copy()
    part[rows] = EXCLUDED
    digest = hashlib.sha256(np.unique(rows).astype("<i8").tobytes()).hexdigest() if len(rows) else ""
    return replace(split, part=part, unused_sha256=digest)


def check_label(
    index: ImageIndex, split: Split, label: str, *, min_patients: int = 5, parts: Sequence[str] = PARTS
) -> None:
    """InputError with the counts if one of the parts has too few positive or too few negative patients."""
    target, patients = index.target(label), index.table["patient"]
    for value, word in ((1, "positive"), (0, "negative")):
        counts = [
            patients[(target == value) & (split.part == position)].nunique() for position in map(PARTS.index, parts)
        ]
        if min(counts) < min_patients:
            by_part = ", ".join(f"{count:,} in {part}" for count, part in zip(counts, parts, strict=True))
            raise InputError(
                f"label {label}: patients with a {word} image: {by_part}; each part needs at least {min_patients}. "
                "Leave the label out, widen [data]'s filters, or use an index with more such patients"
            )


def _read(path: Path, published: Mapping[str, str]) -> SplitFile | None:
    """The split file, None if it does not exist. InputError if a patient's part contradicts the published one."""
    split_file = read_split_file(path)
    if split_file is None:
        return None
    parts = split_file.parts
    wrong = sum(not _agree(PARTS[parts[name]], part) for name, part in published.items() if name in parts)
    if wrong:
        raise InputError(
            f"{path}: has {wrong:,} of {len(published):,} patients in other parts than the published split. A split "
            'that exists is never changed; name another file with [data] split = "PATH"'
        )
    return split_file


def _agree(part: str, published: str) -> bool:
    return part == published or (published == TRAIN_VAL and part != "test")
