"""The folds of a cross-fitted confirmation: the patients outside validation, cut into K folds beside the split.

The folds lie in a file beside the split's file. They are made once for an image set and a number of folds, and later
only extended, like the split. Labels, filters and images that are added later move no patient.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.assignment import assign_new_patients_to_folds, units_of_rows
from acuity.objectives.split.file import (
    PARTS,
    SplitFile,
    parts_digest,
    read_split_file,
    write_lock,
    write_split_file,
)
from acuity.objectives.split.split import EXCLUDED, Split

_VALIDATION = PARTS.index("validation")
NO_FOLD = -1
"""Value of `Folds.fold` for an image that no fold uses."""


@dataclass(frozen=True, eq=False)
class Folds:
    """The fold of each image of an index."""

    path: Path
    fold: np.ndarray
    """int16 [N], in the index's order: 0 to count - 1, or NO_FOLD for a validation patient and an unused image."""
    count: int
    sha256: str
    """SHA-256 of patients and folds of the index before filters: the same for every filter."""

    def test_rows(self, fold: int) -> np.ndarray:
        """int64: the rows of a fold, ascending. Networks that are trained without the fold score them."""
        return np.flatnonzero(self.fold == fold).astype(np.int64)

    def training_rows(self, fold: int) -> np.ndarray:
        """int64: the rows of all other folds, ascending."""
        return np.flatnonzero((self.fold != fold) & (self.fold != NO_FOLD)).astype(np.int64)


def folds_path(split_path: Path, count: int) -> Path:
    """The folds' file beside the split's file: nih.split.csv -> nih.split.folds-4.csv."""
    return split_path.with_name(f"{split_path.stem}.folds-{count}{split_path.suffix}")


def read_or_make_folds(
    whole: ImageIndex,
    whole_split: Split,
    split: Split,
    *,
    rows: np.ndarray,
    count: int,
    keep_together: Sequence[Collection[str]] = (),
    duplicates: Sequence[Sequence[int]] = (),
) -> Folds:
    """Read the folds from their file. Make the file if it does not exist; append patients that it lacks.

    whole, whole_split: the index before filters and its split. split: of the rows of `whole` that pass the filters;
    images that it excludes are in no fold. keep_together: groups of patients that share a picture get one fold.
    duplicates: rows of `split` with the same picture; where they are in several folds, the first fold has the picture.
    InputError if the file is damaged, cannot be written, or has a validation patient.
    """
    path, names = folds_path(split.path, count), tuple(str(number) for number in range(1, count + 1))
    units = units_of_rows(whole, split.unit)
    outside = set(units[whole_split.part != _VALIDATION])
    folds_file = _read(path, names, validation=set(units) - outside)
    if folds_file is None or not outside <= folds_file.parts.keys():
        with write_lock(path):
            folds_file = _read(path, names, validation=set(units) - outside)
            folds_file = folds_file or SplitFile(seed=0, fractions=(1 / count,) * count, parts={}, names=names)
            new = assign_new_patients_to_folds(
                whole, folds_file, patients=outside, keep_together=keep_together, unit=split.unit
            )
            if new:
                folds_file = replace(folds_file, parts=folds_file.parts | new)
                write_split_file(path, folds_file)
    parts = {unit: folds_file.parts[unit] for unit in outside}
    fold = units.iloc[rows].map(parts).fillna(NO_FOLD).to_numpy(np.int16)
    fold[(split.part == _VALIDATION) | (split.part == EXCLUDED)] = NO_FOLD
    fold[_duplicates_across_folds(fold, duplicates)] = NO_FOLD
    return Folds(path=path, fold=fold, count=count, sha256=parts_digest(parts, names=names))


def check_label_in_folds(index: ImageIndex, folds: Folds, label: str) -> None:
    """InputError if a fold has fewer than 2 positive or 2 negative patients: its AUC has no standard error."""
    for counts, word in zip(
        zip(*count_patients(index, folds, label), strict=True), ("positive", "negative"), strict=True
    ):
        if min(counts) < 2:
            raise InputError(
                f"label {label}: patients with a {word} image in the {folds.count} folds: "
                f"{', '.join(map(str, counts))}; each needs at least 2. Lower [confirm] folds, or leave the label out"
            )


def count_patients(index: ImageIndex, folds: Folds, label: str) -> tuple[tuple[int, int], ...]:
    """Numbers of patients with a positive and with a negative image of the label, in each fold."""
    target, patients = index.target(label), index.table["patient"]

    def count(fold: int, value: int) -> int:
        return int(patients[(target == value) & (folds.fold == fold)].nunique())

    return tuple((count(fold, 1), count(fold, 0)) for fold in range(folds.count))


def _read(path: Path, names: tuple[str, ...], *, validation: set[str]) -> SplitFile | None:
    folds_file = read_split_file(path, names=names)
    if folds_file is not None and (wrong := len(validation & folds_file.parts.keys())):
        raise InputError(
            f"{path}: has {wrong:,} validation patients of the split in its folds, so it belongs to another split. "
            "Put back the split and the folds as they were, or remove this file: its folds are then made anew"
        )
    return folds_file


def _duplicates_across_folds(fold: np.ndarray, duplicates: Sequence[Sequence[int]]) -> list[int]:
    """Rows whose picture is also in an earlier fold."""
    later = []
    for rows in duplicates:
        used = [row for row in rows if fold[row] != NO_FOLD]
        later += [row for row in used if fold[row] != min(fold[used])]
    return later
