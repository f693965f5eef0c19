"""Patients -> training, validation and test: decided once for an image set, then only read and added to.

Kept in a table beside the index, so that a label, a filter or new images that come later move no test patient.
"""

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.file import PARTS, SplitFile, parts_digest, read_split_file, sole_writer, write_split_file
from acuity.objectives.split.published import TRAIN_VAL
from acuity.objectives.split.stratify import stratify

LEFT_OUT = len(PARTS)
"""In the place of a part: an image that no part uses."""


@dataclass(frozen=True, eq=False)
class Split:
    """The part of each image of an index."""

    path: Path
    part: np.ndarray
    """uint8 [N]: position in PARTS or LEFT_OUT, in the index's order."""
    sha256: str
    """Of this index's patients and their parts, in the patients' order: the same for every index of these patients."""
    whole_sha256: str
    """Likewise of the index before filters: the same for every filter."""
    unused_sha256: str = ""
    """Of the rows that `leave_out` took away; empty without any."""
    unit: Literal["patient", "file"] = "patient"
    """What is in one part only: "patient", or "file" where images were split."""

    def rows(self, part: str) -> np.ndarray:
        """int64: the rows of a part, ascending."""
        return np.flatnonzero(self.part == PARTS.index(part)).astype(np.int64)


def read_or_make_split(
    index: ImageIndex,
    *,
    path: Path,
    published: Mapping[str, str] | None = None,
    together: Sequence[Collection[str]] = (),
    seed: int = 0,
    fractions: Sequence[float] = (0.64, 0.16, 0.20),
    unit: Literal["patient", "file"] = "patient",
    write: bool = True,
) -> Split:
    """The split of an index's patients, from the file at path; made if there is none, lengthened by patients not in it.

    seed and fractions count when the file is made; afterwards the file's own hold. All labels of the index are
    stratified together, whatever label asked first. published: from `published_parts`. together: patients who share a
    picture; those whom the file does not have yet come into one part. A last fraction of 0 leaves no test part.
    unit="file" splits images as if each were a patient of its own. write=False: what it would be, without a file.
    InputError if the file is damaged, cannot be written or contradicts what is published.
    """
    published = published or {}
    written = _read(path, published)
    patients = _unit_of_rows(index, unit)
    names = patients.unique()
    if written is None or not set(names) <= written.parts.keys():
        with sole_writer(path) if write else contextlib.nullcontext():
            written = _read(path, published) or SplitFile(seed, tuple(fractions), parts={})
            new = _assign_new_patients(index, written, published, together, unit)
            if new:
                written = SplitFile(written.seed, written.fractions, written.parts | new)
                if write:
                    write_split_file(path, written)
    mine = {patient: written.parts[patient] for patient in names}
    digest = parts_digest(mine)
    part = patients.map(mine).to_numpy(np.uint8)
    return Split(path=path, part=part, sha256=digest, whole_sha256=digest, unit=unit)


def take_split(split: Split, index: ImageIndex, rows: np.ndarray) -> Split:
    """The split of an index that has only these rows of the one that was split."""
    part = split.part[rows]
    digest = parts_digest(dict(zip(_unit_of_rows(index, split.unit), part.tolist(), strict=True)))
    return replace(split, part=part, sha256=digest)


def leave_out(split: Split, rows: np.ndarray) -> Split:
    """The same split without these images; their patients stay where they are."""
    part = split.part.copy()
    part[rows] = LEFT_OUT
    digest = hashlib.sha256(np.unique(rows).astype("<i8").tobytes()).hexdigest() if len(rows) else ""
    return replace(split, part=part, unused_sha256=digest)


def check_label(
    index: ImageIndex, split: Split, label: str, *, least_patients: int = 5, parts: Sequence[str] = PARTS
) -> None:
    """InputError with the counts if a part has too few patients with the finding, or without it, to learn or judge.

    parts: those that the split is to have.
    """
    target, patients = index.target(label), index.table["patient"]
    for value, what in ((1, "positive"), (0, "negative")):
        counts = [
            patients[(target == value) & (split.part == position)].nunique() for position in map(PARTS.index, parts)
        ]
        if min(counts) < least_patients:
            told = ", ".join(f"{count:,} in {part}" for count, part in zip(counts, parts, strict=True))
            raise InputError(
                f"label {label}: patients with a {what} image: {told}; each part needs at least {least_patients}. "
                "Leave the label out, widen [data]'s filters, or use an index with more such patients"
            )


def _unit_of_rows(index: ImageIndex, unit: Literal["patient", "file"]) -> "pd.Series[str]":
    """Patients, or files by their names in the index: their place below the images' folder may change."""
    return index.table["patient"] if unit == "patient" else pd.Series(index.names, index=index.table.index)


def _read(path: Path, published: Mapping[str, str]) -> SplitFile | None:
    """The file, if there is one. InputError if a patient of it is elsewhere than published."""
    written = read_split_file(path)
    if written is None:
        return None
    parts = written.parts
    wrong = sum(not _agrees(PARTS[parts[name]], word) for name, word in published.items() if name in parts)
    if wrong:
        raise InputError(
            f"{path}: has {wrong:,} of {len(published):,} patients in other parts than the published split. It was "
            'made before, and moves nobody; name another file with [data] split = "PATH"'
        )
    return written


def _agrees(part: str, word: str) -> bool:
    return part == word or (word == TRAIN_VAL and part != "test")


def _assign_new_patients(
    index: ImageIndex,
    written: SplitFile,
    published: Mapping[str, str],
    together: Sequence[Collection[str]],
    unit_of_split: Literal["patient", "file"],
) -> dict[str, int]:
    """The part of each patient of the index whom the file does not have yet."""
    positive = np.nan_to_num(index.targets)
    # Sorted by patient, so that the split depends on what the index says and not on the order in which it says it.
    images = pd.DataFrame(positive).assign(images=1.0).groupby(_unit_of_rows(index, unit_of_split), sort=True).sum()
    names = images.index.to_list()
    decided = {name: PARTS.index(word) for name, word in published.items() if word in PARTS} | written.parts
    known = np.array([decided.get(name, -1) for name in names])
    fractions, free = written.fractions, np.arange(len(names))
    if published:  # the publisher's test patients are all of them: only training and validation are shared out
        fractions, free = fractions[:-1], np.flatnonzero(known != PARTS.index("test"))
    elif fractions[-1] == 0:
        fractions = fractions[:-1]
    unit = _units([names[i] for i in free], together)
    parts = known.copy()
    parts[free] = stratify(
        _sums(images.to_numpy()[free], unit),
        fractions=fractions,
        known=_known_units(known[free], unit),
        seed=np.random.SeedSequence([written.seed, len(written.parts)]),
    )[unit]
    return {
        names[i]: int(known[i] if known[i] >= 0 else parts[i])
        for i in range(len(names))
        if names[i] not in written.parts
    }


def _units(names: Sequence[str], together: Sequence[Collection[str]]) -> np.ndarray:
    """int [P]: patients with the same number are shared out as one."""
    place = {name: i for i, name in enumerate(names)}
    unit = np.arange(len(names))
    for group in together:
        joined = np.unique(unit[[place[name] for name in group if name in place]])
        unit[np.isin(unit, joined)] = joined.min(initial=len(names))
    return np.unique(unit, return_inverse=True)[1]


def _sums(images: np.ndarray, unit: np.ndarray) -> np.ndarray:
    sums = np.zeros((unit.max(initial=-1) + 1, images.shape[1]))
    np.add.at(sums, unit, images)
    return sums


def _known_units(known: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The part of each unit: the first one that a patient of it has already, -1 if none has."""
    parts = np.full(unit.max(initial=-1) + 1, LEFT_OUT)
    np.minimum.at(parts, unit, np.where(known < 0, LEFT_OUT, known))
    return np.where(parts == LEFT_OUT, -1, parts)
