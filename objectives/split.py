"""Patients -> training, validation and test: decided once for an image set, then only read and added to.

Kept in a table beside the index, so that a label, a filter or new images that come later move no test patient.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from objectives.errors import InputError
from objectives.index import ImageIndex
from objectives.stratify import stratify

PARTS = ("training", "validation", "test")

_FIRST_WORDS = "# acuity split 1"
_FIRST_LINE = re.compile(
    rf"{_FIRST_WORDS}: .*seed (?P<seed>\d+); "
    r"fractions (?P<fractions>\d\.\d+ \d\.\d+ \d\.\d+); sha256 (?P<sha256>[0-9a-f]{64})"
)
_WAY_OUT = 'Name another file with [data] split = "PATH" (a folder that you may write to)'
_DAMAGED = "Put back the file as it was: with another split, earlier results do not compare"


@dataclass(frozen=True, eq=False)
class Split:
    """The part of each image of an index."""

    path: Path
    part: np.ndarray
    """uint8 [N]: position in PARTS, in the index's order."""
    sha256: str
    """Of this index's patients and their parts, in the patients' order: the same for every index of these patients."""

    def rows(self, part: str) -> np.ndarray:
        """int64: the rows of a part, ascending."""
        return np.flatnonzero(self.part == PARTS.index(part)).astype(np.int64)


@dataclass(frozen=True)
class _SplitFile:
    """What stands in the file. Seed and fractions are kept, since patients appended later need the same ones."""

    seed: int
    fractions: tuple[float, ...]
    parts: dict[str, int]


def read_or_make_split(
    index: ImageIndex, *, path: Path, seed: int = 0, fractions: Sequence[float] = (0.64, 0.16, 0.20)
) -> Split:
    """The split of an index's patients, from the file at path; made if there is none, lengthened by patients not in it.

    seed and fractions count when the file is made; afterwards the file's own hold. All labels of the index are
    stratified together, whatever label asked first. InputError if the file is damaged or cannot be written.
    """
    patients = index.table["patient"]
    written = _read(path)
    if written is None or not set(patients.unique()) <= written.parts.keys():
        with _sole_writer(path):
            written = _read(path) or _SplitFile(seed=seed, fractions=tuple(fractions), parts={})
            new = _assign_new_patients(index, written)
            if new:
                written = _SplitFile(written.seed, written.fractions, written.parts | new)
                _write(path, written)
    mine = {patient: written.parts[patient] for patient in patients.unique()}
    return Split(path=path, part=patients.map(mine).to_numpy(np.uint8), sha256=_digest(mine))


def check_label(index: ImageIndex, split: Split, label: str, *, least_patients: int = 5) -> None:
    """InputError with the counts if a part has too few patients with the finding, or without it, to learn or judge."""
    target, patients = index.target(label), index.table["patient"]
    for value, what in ((1, "positive"), (0, "negative")):
        counts = [patients[(target == value) & (split.part == position)].nunique() for position in range(len(PARTS))]
        if min(counts) < least_patients:
            told = ", ".join(f"{count:,} in {part}" for count, part in zip(counts, PARTS, strict=True))
            raise InputError(
                f"label {label}: patients with a {what} image: {told}; each part needs at least {least_patients}. "
                "Leave the label out, or use an index with more such patients"
            )


def _assign_new_patients(index: ImageIndex, written: _SplitFile) -> dict[str, int]:
    """The part of each patient of the index whom the file does not have yet."""
    positive = np.nan_to_num(index.targets)
    # Sorted by patient, so that the split depends on what the index says and not on the order in which it says it.
    images = pd.DataFrame(positive).assign(images=1.0).groupby(index.table["patient"], sort=True).sum()
    names = images.index.to_list()
    known = np.array([written.parts.get(name, -1) for name in names])
    parts = stratify(
        images.to_numpy(),
        fractions=written.fractions,
        known=known,
        seed=np.random.SeedSequence([written.seed, len(written.parts)]),
    )
    return {names[i]: int(parts[i]) for i in np.flatnonzero(known < 0)}


def _read(path: Path) -> _SplitFile | None:
    """The file's content, None if there is no file. InputError for one that is damaged or something else."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, csv.Error):
        rows = []
    except OSError as error:
        raise InputError(f"{path}: the split cannot be read ({error.strerror}). {_WAY_OUT}") from None
    first = _FIRST_LINE.fullmatch(",".join(rows[0])) if rows else None
    if first is None:
        raise InputError(
            f'{path}: is not a split that this version of Acuity wrote (first line "{_FIRST_WORDS}: ..."). {_WAY_OUT}'
        )
    parts: dict[str, int] = {}
    for number, row in enumerate(rows[2:], start=3):
        if not row:
            continue
        if len(row) != 2 or row[1] not in PARTS or row[0] in parts:
            raise InputError(
                f"{path}: line {number:,} must be a patient not named before, a comma, and one of {', '.join(PARTS)}. "
                f"{_DAMAGED}"
            )
        parts[row[0]] = PARTS.index(row[1])
    if _digest(parts) != first["sha256"]:
        raise InputError(f"{path}: its patients are not those that were written (SHA-256 differs). {_DAMAGED}")
    return _SplitFile(int(first["seed"]), tuple(float(share) for share in first["fractions"].split()), parts)


def _write(path: Path, split: _SplitFile) -> None:
    """Write the whole file under another name, then move it: a reader sees the old one or the new one."""
    text = io.StringIO()
    fractions = " ".join(f"{fraction}" for fraction in split.fractions)
    text.write(f"{_FIRST_WORDS}: each patient's part; do not edit; seed {split.seed}; fractions {fractions}; ")
    text.write(f"sha256 {_digest(split.parts)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("patient", "part"))
    writer.writerows((patient, PARTS[part]) for patient, part in split.parts.items())
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: the split cannot be written ({error.strerror}). {_WAY_OUT}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    """Hold the file's lock, which a killed process gives back: workers that start together make one split."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(f"{path}: the split cannot be written ({error.strerror}). {_WAY_OUT}") from None
    try:
        yield
    finally:
        os.close(lock)


def _digest(parts: dict[str, int]) -> str:
    text = "".join(f"{patient}\0{PARTS[part]}\n" for patient, part in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()
