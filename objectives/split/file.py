"""Read and write a split file, a table of patients and parts. Writers take a lock and replace the file at once."""

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

from acuity.objectives.atomic_write import write_atomically
from acuity.objectives.errors import InputError

PARTS = ("training", "validation", "test")
_TITLE = "# acuity split 1"
_FIRST_LINE = re.compile(
    rf"{_TITLE}: .*seed (?P<seed>\d+); "
    r"fractions (?P<fractions>\d\.\d+(?: \d\.\d+)+); sha256 (?P<sha256>[0-9a-f]{64})"
)

_OTHER_FILE = 'Name another file with [data] split = "PATH" (a folder that you may write to)'
_RESTORE = "Put back the file as it was: with another split, earlier results are not comparable"


@dataclass(frozen=True)
class SplitFile:
    """Content of a split file. Patients that are appended later use the same seed and fractions."""

    seed: int
    fractions: tuple[float, ...]
    """Share of each part of the patients that are assigned."""
    parts: dict[str, int]
    """Patient -> position among the names of the parts."""
    names: tuple[str, ...] = PARTS
    """Names of the parts."""


def read_split_file(path: Path, *, names: Sequence[str] = PARTS) -> SplitFile | None:
    """The content of the file, None if it does not exist. InputError if it is damaged or has other parts than named."""
    try:
        with path.open(encoding="utf-8", newline="") as file:  # a patient may have a carriage return in it
            rows = list(csv.reader(file))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, csv.Error):
        rows = []
    except OSError as error:
        raise InputError(f"{path}: the split cannot be read ({error.strerror}). {_OTHER_FILE}") from None
    first = _FIRST_LINE.fullmatch(",".join(rows[0])) if rows else None
    if first is None:
        raise InputError(
            f'{path}: is not a split that this version of Acuity wrote (first line "{_TITLE}: ..."). {_OTHER_FILE}'
        )
    parts: dict[str, int] = {}
    for number, row in enumerate(rows[2:], start=3):
        if not row:
            continue
        if len(row) != 2 or row[1] not in names or row[0] in parts:
            raise InputError(
                f"{path}: line {number:,} must be a patient not named before, a comma, and one of {', '.join(names)}. "
                f"{_RESTORE}"
            )
        parts[row[0]] = names.index(row[1])
    if parts_digest(parts, names=names) != first["sha256"]:
        raise InputError(f"{path}: its patients are not those that were written (SHA-256 differs). {_RESTORE}")
    fractions = tuple(float(share) for share in first["fractions"].split())
    return SplitFile(int(first["seed"]), fractions, parts, names=tuple(names))


def write_split_file(path: Path, split: SplitFile) -> None:
    """Replace the file in one step. InputError if it cannot be written."""
    text = io.StringIO()
    fractions = " ".join(f"{fraction}" for fraction in split.fractions)
    text.write(f"{_TITLE}: each patient's part; do not edit; seed {split.seed}; fractions {fractions}; ")
    text.write(f"sha256 {parts_digest(split.parts, names=split.names)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("patient", "part"))
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for patient, part in split.parts.items():  # csv does not quote a carriage return if lines end without one
        (quoting if "\r" in patient else writer).writerow((patient, split.names[part]))
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(f"{path}: the split cannot be written ({error.strerror}). {_OTHER_FILE}") from None


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the split's lock, so that workers that start at once make one split. A killed process frees it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(f"{path}: the split cannot be written ({error.strerror}). {_OTHER_FILE}") from None
    try:
        yield
    finally:
        os.close(lock)


def parts_digest(parts: dict[str, int], *, names: Sequence[str] = PARTS) -> str:
    """SHA-256 of patients and the names of their parts, sorted by patient."""
    text = "".join(f"{patient}\0{names[part]}\n" for patient, part in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()
