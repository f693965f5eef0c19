"""Normalize the cells of an index file to one table for all formats."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from acuity.objectives.tables.column_mapping import FormatName

_BLANK = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})
_LONGEST_BLANK = max(map(len, _BLANK))
OLDEST_AGE_YEARS = 120.0
"""A larger age is unknown: NIH's table has ages up to 414."""
Uncertain = Literal["positive", "negative", "leave_out"]
Blank = Literal["negative", "leave_out"]


class ColumnError(ValueError):
    """A mistake in a column: the line and the rule, without the file's path."""


@dataclass(frozen=True)
class LabelPolicy:
    """The targets of uncertain and blank cells, in formats with one column per label."""

    uncertain: Uncertain = "leave_out"
    """Target of -1."""
    blank: Blank = "leave_out"
    """Target of an empty cell."""


@dataclass(frozen=True, eq=False)
class Columns:
    """A file's text by column name, and the line on which each row ends. A blank cell is "" (`plain_cell`)."""

    lines: Sequence[int]
    text: Mapping[str, Sequence[str]]
    path: Path = Path()
    """The file. A format that is published in several tables finds the others beside it."""

    def first_of(self, *names: str) -> Sequence[str]:
        """The first of these columns that exists, else empty cells."""
        found = [self.text[name] for name in names if name in self.text]
        return found[0] if found else [""] * len(self.lines)


@dataclass(frozen=True, eq=False)
class IndexContent:
    """The content of an index file, the same for every format."""

    table: pd.DataFrame
    """The columns that `ImageIndex` describes."""
    labels: tuple[str, ...]
    targets: np.ndarray
    """float32 [N, len(labels)]."""
    rejected_columns: Mapping[str, str] = field(default_factory=dict)
    """Name of each column that is not a label -> the reason."""
    suspicions: tuple[str, ...] = ()
    """Facts about cells and labels that may be a mistake, with counts and examples."""
    folder: str = ""
    """The release's folder, with which the publisher's paths start. [data] images may be this folder or its parent."""
    headings: Mapping[str, str] = field(default_factory=dict)
    """The table's names of the columns sex and age."""
    format_name: FormatName = "table"
    has_patients: bool = True
    """False if each image counts as a patient, since the table names no patients."""


def plain_cell(text: str) -> str:
    """The text of a cell without surrounding spaces. Empty for the words with which programs write a missing value."""
    text = text.strip()
    return "" if len(text) <= _LONGEST_BLANK and text.lower() in _BLANK else text


def image_table(
    columns: Columns,
    *,
    file: Sequence[str],
    patient: Sequence[str],
    no_finding: np.ndarray,
    view: Sequence[str] | np.ndarray = (),
    age: np.ndarray | None = None,
    sex: Sequence[str] = (),
    site: Sequence[str] = (),
    split: Sequence[str] | np.ndarray = (),
) -> pd.DataFrame:
    """The table that `ImageIndex` describes. A column that the format does not have is empty."""
    blank = [""] * len(columns.lines)
    return pd.DataFrame(
        {
            "line": np.asarray(columns.lines, dtype=np.int64),
            "file": np.asarray(file, dtype=object),
            "patient": np.asarray(patient, dtype=object),
            "view": np.asarray(view if len(view) else blank, dtype=object),
            "age": np.full(len(blank), np.nan) if age is None else age.astype(np.float64),
            "sex": map_distinct(sex if len(sex) else blank, _sex),
            "site": np.asarray(site if len(site) else blank, dtype=object),
            "split": np.asarray(split if len(split) else blank, dtype=object),
            "no_finding": no_finding.astype(bool),
        }
    )


def map_distinct(cells: Sequence[str] | np.ndarray, convert: Callable[[str], object]) -> np.ndarray:
    """convert(cell) for every cell: object [N]. convert is called once for each distinct cell."""
    codes, distinct = factorize(cells)
    values: np.ndarray = np.array([convert(cell) for cell in distinct], dtype=object)[codes]
    return values


def factorize(cells: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [N], and the distinct cells in the order of their first occurrence."""
    codes, distinct = pd.factorize(np.asarray(cells, dtype=object))
    return codes, np.asarray(distinct, dtype=object)


def age_years(cell: str) -> float:
    """Years of `58`, or of `058Y`, `011M` (months), `013D` (days) as in NIH's first release. NaN if unknown.

    `45yrs` (Shenzhen) and `85 or more` (BRAX) are years too.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(Y|M|W|D|YRS?|YEARS?|MONTHS?|DAYS?|OR MORE|)", cell.upper())
    if found is None:
        return float("nan")
    years = float(found[1]) / {"M": 12.0, "W": 52.18, "D": 365.25}.get(found[2][:1], 1.0)
    return years if years <= OLDEST_AGE_YEARS else float("nan")


def _sex(cell: str) -> str:
    return {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}.get(cell.upper(), "")
