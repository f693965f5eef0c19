"""How publishers write their tables, and the one form that all are brought to.

A new format is one function from columns to findings, and its line in FORMATS.
"""

import csv
import difflib
import gzip
import io
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from objectives.errors import InputError

NO_FINDING = "No Finding"
OLDEST_AGE_YEARS = 120.0
"""NIH's table has ages up to 414; what is above this is not known."""


@dataclass(frozen=True, eq=False)
class Columns:
    """A file as read: text by column name, and the line on which each row ends."""

    lines: Sequence[int]
    text: Mapping[str, list[str]]

    def any_of(self, *names: str) -> list[str]:
        """The first of these columns that is there, else a column of nothing."""
        found = [self.text[name] for name in names if name in self.text]
        return found[0] if found else [""] * len(self.lines)


@dataclass(frozen=True, eq=False)
class Findings:
    """What every format is brought to."""

    table: pd.DataFrame
    labels: tuple[str, ...]
    targets: np.ndarray


@dataclass(frozen=True)
class Format:
    """How one publisher writes its table."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Columns], Findings]


def read_findings(path: Path) -> Findings:
    """Read a table (.csv, also gzipped) whose format its columns tell."""
    rows = _rows(path, _text(path))
    header = _header(path, rows)
    return _format_of(path, header).read(_columns(path, header, rows))


def nearest(wrong: str, there: Sequence[str]) -> str:
    """The end of a message about a name that is not there: the one that was probably meant, or all of them."""
    by_lower = {name.lower(): name for name in there}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=1)
    if near:
        return f'The nearest there is "{by_lower[near[0]]}"'
    return f"There are: {', '.join(there)}" if there else "There are none"


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; [data] index names the image set's table (NIH's Data_Entry CSV)"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: the gzip file is damaged; fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); an index is a CSV file") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: is not UTF-8 text; an index is a CSV file (save a spreadsheet as CSV UTF-8)"
        ) from None


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with its line number."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: index line {reader.line_num:,} is not CSV ({error}): mend that line") from None


def _header(path: Path, rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    header = [name.strip() for name in next(rows, (1, []))[1]]
    while header and not header[-1]:
        header.pop()
    if not header:
        raise InputError(f"{path}: is empty; an index has a header line and one line an image")
    return header


def _format_of(path: Path, header: list[str]) -> Format:
    """The format whose columns are all there; InputError names what the likeliest one lacks."""

    def lacking(form: Format) -> list[str]:
        return [name for name in form.needs if name not in header]

    likeliest = min(FORMATS, key=lambda form: len(lacking(form)))
    missing = lacking(likeliest)
    if len(missing) == len(likeliest.needs):
        # Its first line may be a patient's, so it is not repeated here.
        raise InputError(
            f"{path}: its first line has none of the columns of {likeliest.name} index ({', '.join(missing)}): "
            "it must be the header, with commas between the names"
        )
    if missing:
        raise InputError(
            f'{path}: has no column "{missing[0]}", which {likeliest.name} index needs. {nearest(missing[0], header)}'
        )
    return likeliest


def _columns(path: Path, header: list[str], rows: Iterator[tuple[int, list[str]]]) -> Columns:
    # `OriginalImage[Width,Height]` is one name over two fields. Unquoted it falls apart into two, as its values do.
    # Some copies quote the name alone, and some end every line in a comma.
    fewest, most = len(header), sum(name.count(",") + 1 for name in header)
    lines, records = [], []
    for line, row in rows:
        if len(row) < fewest or any(field.strip() for field in row[most:]):
            raise InputError(
                f"{path}: index line {line:,} has {len(row)} fields and the header {fewest}: mend that line (a field "
                "with a comma in it needs quotes around it)"
            )
        lines.append(line)
        records.append(row)
    if not records:
        raise InputError(f"{path}: has a header but no rows; an index has one line an image")
    return Columns(lines, {name: [row[i].strip() for row in records] for i, name in enumerate(header)})


def _read_nih(columns: Columns) -> Findings:
    """NIH ChestX-ray14, Data_Entry_2017.csv and Data_Entry_2017_v2020.csv."""
    table = pd.DataFrame(
        {
            "line": np.asarray(columns.lines, dtype=np.int64),
            "file": [_normal(file) for file in columns.text["Image Index"]],
            "patient": columns.text["Patient ID"],
            "view": columns.any_of("View Position"),
            "age": _by_value(columns.any_of("Patient Age"), _age_years).astype(np.float64),
            "sex": _by_value(columns.any_of("Patient Sex", "Patient Gender"), _sex),
        }
    )
    labels, targets = _listed_findings(columns.text["Finding Labels"])
    return Findings(table, labels, targets)


FORMATS = (Format(name="an NIH", needs=("Image Index", "Finding Labels", "Patient ID"), read=_read_nih),)


def _listed_findings(cells: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Labels and targets of cells such as `Edema|Effusion`; an empty cell says nothing about any label."""
    codes, distinct = pd.factorize(np.asarray(cells, dtype=object))
    named = [{name.strip() for name in cell.split("|")} - {""} for cell in distinct]
    labels = tuple(sorted(set().union(*named) - {NO_FINDING}))
    targets = np.array(
        [[float(label in names) if names else np.nan for label in labels] for names in named], dtype=np.float32
    )
    return labels, targets.reshape(len(named), len(labels))[codes]


def _by_value(cells: list[str], read: Callable[[str], object]) -> np.ndarray:
    """read(cell) for every cell, called once for each distinct one."""
    codes, distinct = pd.factorize(np.asarray(cells, dtype=object))
    return np.array([read(cell) for cell in distinct], dtype=object)[codes]


def _age_years(cell: str) -> float:
    """`58`, and the first release's `058Y`, `011M` (months), `013D` (days)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", cell.upper())
    if found is None:
        return float("nan")
    years = float(found[1]) / {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}[found[2]]
    return years if years <= OLDEST_AGE_YEARS else float("nan")


def _sex(cell: str) -> str:
    return {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}.get(cell.upper(), "")


def _normal(file: str) -> str:
    return posixpath.normpath(file) if "/" in file and ".." not in file else file
