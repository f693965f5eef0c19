"""Assign patients that are not in the split file yet to training, validation and test, or to folds."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.file import PARTS, SplitFile
from acuity.objectives.split.stratify import stratify


def assign_new_patients(
    index: ImageIndex,
    split_file: SplitFile,
    *,
    published: Mapping[str, str],
    keep_together: Sequence[Collection[str]],
    unit: Literal["patient", "file"],
) -> dict[str, int]:
    """The part (position in PARTS) of each patient of the index that is not in the split file.

    Arguments as in `read_or_make_split`.
    """
    images = _images_by_unit(index, unit)
    names = images.index.to_list()
    decided = {name: PARTS.index(part) for name, part in published.items() if part in PARTS} | split_file.parts
    known = np.array([decided.get(name, -1) for name in names])
    fractions, free = split_file.fractions, np.arange(len(names))
    if published:  # The published test part is complete. The other patients go to training or validation.
        fractions, free = fractions[:-1], np.flatnonzero(known != PARTS.index("test"))
    elif fractions[-1] == 0:
        fractions = fractions[:-1]
    parts = known.copy()
    parts[free] = _assign(
        images.iloc[free],
        known[free],
        keep_together=keep_together,
        fractions=fractions,
        seed=np.random.SeedSequence([split_file.seed, len(split_file.parts)]),
    )
    return {
        names[i]: int(known[i] if known[i] >= 0 else parts[i])
        for i in range(len(names))
        if names[i] not in split_file.parts
    }


def assign_new_patients_to_folds(
    index: ImageIndex,
    folds_file: SplitFile,
    *,
    patients: Collection[str],
    keep_together: Sequence[Collection[str]],
    unit: Literal["patient", "file"],
) -> dict[str, int]:
    """The fold of each of these patients that is not in the folds' file.

    keep_together: groups of patients that share a picture get one fold.
    """
    images = _images_by_unit(index, unit)
    images = images.loc[images.index.isin(set(patients))]
    names = images.index.to_list()
    folds = _assign(
        images,
        np.array([folds_file.parts.get(name, -1) for name in names], dtype=np.int64),
        keep_together=keep_together,
        fractions=folds_file.fractions,
        seed=np.random.SeedSequence([folds_file.seed, len(folds_file.parts), len(folds_file.names)]),
    )
    return {name: int(fold) for name, fold in zip(names, folds, strict=True) if name not in folds_file.parts}


def units_of_rows(index: ImageIndex, unit: Literal["patient", "file"]) -> "pd.Series[str]":
    """The patient of each image, or its file name in the index, which does not depend on the folders of the files."""
    return index.table["patient"] if unit == "patient" else pd.Series(index.names, index=index.table.index)


def _images_by_unit(index: ImageIndex, unit: Literal["patient", "file"]) -> pd.DataFrame:
    """Numbers of positive images of each label and, last, of all images: one row per patient, or per file.

    Rows are sorted by name, so that a split does not depend on the order of the index.
    """
    positive = np.nan_to_num(index.targets)
    return pd.DataFrame(positive).assign(images=1.0).groupby(units_of_rows(index, unit), sort=True).sum()


def _assign(
    images: pd.DataFrame,
    known: np.ndarray,
    *,
    keep_together: Sequence[Collection[str]],
    fractions: Sequence[float],
    seed: np.random.SeedSequence,
) -> np.ndarray:
    """int64 [P]: the part of each row of images. known: its part, or -1 where it has none yet."""
    group = _groups(images.index.to_list(), keep_together)
    parts: np.ndarray = stratify(
        _sums_by_group(images.to_numpy(), group),
        fractions=fractions,
        known=_known_by_group(known, group),
        seed=seed,
    )[group]
    return parts


def _groups(names: Sequence[str], keep_together: Sequence[Collection[str]]) -> np.ndarray:
    """int [P]: the group of each patient. All patients of a group get the same part."""
    position = {name: i for i, name in enumerate(names)}
    group = np.arange(len(names))
    for patients in keep_together:
        joined = np.unique(group[[position[name] for name in patients if name in position]])
        group[np.isin(group, joined)] = joined.min(initial=len(names))
    return np.unique(group, return_inverse=True)[1]


def _sums_by_group(images: np.ndarray, group: np.ndarray) -> np.ndarray:
    sums = np.zeros((group.max(initial=-1) + 1, images.shape[1]))
    np.add.at(sums, group, images)
    return sums


def _known_by_group(known: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The known part of each group: the first part that any of its patients has, -1 if none has a part."""
    unknown = known.max(initial=-1) + 1
    parts = np.full(group.max(initial=-1) + 1, unknown)
    np.minimum.at(parts, group, np.where(known < 0, unknown, known))
    return np.where(parts == unknown, -1, parts)
