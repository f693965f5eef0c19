"""What is in a table's cells, brought to one form whoever published the table."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

OLDEST_AGE_YEARS = 120.0
"""NIH's table has ages up to 414; what is above this is not known."""
Uncertain = Literal["positive", "negative", "leave_out"]
Blank = Literal["negative", "leave_out"]


@dataclass(frozen=True)
class Reading:
    """How cells that are neither yes nor no count, in formats that have a column for each label."""

    uncertain: Uncertain = "leave_out"
    """What -1 means."""
    blank: Blank = "leave_out"
    """What an empty cell means."""


@dataclass(frozen=True, eq=False)
class Columns:
    """A file as read: text by column name, and the line on which each row ends."""

    lines: Sequence[int]
    text: Mapping[str, Sequence[str]]

    def any_of(self, *names: str) -> Sequence[str]:
        """The first of these columns that is there, else a column of nothing."""
        found = [self.text[name] for name in names if name in self.text]
        return found[0] if found else [""] * len(self.lines)


@dataclass(frozen=True, eq=False)
class IndexContent:
    """The content of an index file, the same for every format."""

    table: pd.DataFrame
    labels: tuple[str, ...]
    targets: np.ndarray
    set_aside: Mapping[str, str] = field(default_factory=dict)
    """Columns that are no label, and why not."""
    folder: str = ""
    """What the publisher's paths start with: the image set's own folder, which may be [data] images itself."""


def content_table(
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
    """The table that `ImageIndex` describes; a column that a format does not have is empty."""
    nothing = [""] * len(columns.lines)
    return pd.DataFrame(
        {
            "line": np.asarray(columns.lines, dtype=np.int64),
            "file": np.asarray(file, dtype=object),
            "patient": np.asarray(patient, dtype=object),
            "view": np.asarray(view if len(view) else nothing, dtype=object),
            "age": np.full(len(nothing), np.nan) if age is None else age.astype(np.float64),
            "sex": by_value(sex if len(sex) else nothing, _sex),
            "site": np.asarray(site if len(site) else nothing, dtype=object),
            "split": np.asarray(split if len(split) else nothing, dtype=object),
            "no_finding": no_finding.astype(bool),
        }
    )


def factorize(cells: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [N] and the distinct cells, in the order of their first occurrence."""
    codes, distinct = pd.factorize(np.asarray(cells, dtype=object))
    return codes, np.asarray(distinct, dtype=object)


def by_value(cells: Sequence[str] | np.ndarray, read: Callable[[str], object]) -> np.ndarray:
    """read(cell) for every cell, called once for each distinct one."""
    codes, distinct = factorize(cells)
    values: np.ndarray = np.array([read(cell) for cell in distinct], dtype=object)[codes]
    return values


def age_years(cell: str) -> float:
    """`58`, and NIH's first release's `058Y`, `011M` (months), `013D` (days)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", cell.upper())
    if found is None:
        return float("nan")
    years = float(found[1]) / {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}[found[2]]
    return years if years <= OLDEST_AGE_YEARS else float("nan")


def _sex(cell: str) -> str:
    return {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}.get(cell.upper(), "")
