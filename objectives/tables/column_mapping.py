"""Names of the index formats and the columns of a table, as the experiment file gives them.

Imports nothing heavy, so that the file is read quickly.
"""

from dataclasses import dataclass, field
from typing import Literal

FormatName = Literal[
    "nih",
    "chexpert",
    "chexpert-plus",
    "padchest",
    "mimic",
    "vindr",
    "vindr-boxes",
    "rsna",
    "siim",
    "brax",
    "covid",
    "tuberculosis",
    "table",
]
WITHOUT_PATIENTS: frozenset[FormatName] = frozenset({"vindr", "vindr-boxes", "rsna", "siim", "tuberculosis"})
"""Formats that name no patients, or one for each image: each image counts as a patient."""
EACH_FILE = "file"
"""The value of `ColumnMapping.patient` with which each image counts as a patient."""
RowsPerImage = Literal["any", "majority", "all"]
Target = Literal[1, 0, -1]


@dataclass(frozen=True)
class ColumnMapping:
    """The columns of a table. A value is a column's name, or for file and patient a pattern such as "{id}.png".

    A pattern's {name:.2} is the first two characters of the column. None: as the format has it, else not in the table.
    """

    file: str | None = None
    patient: str | None = None
    """"file": each image counts as a patient."""
    labels: str | tuple[str, ...] | dict[str, str] | None = None
    """Columns of labels: a name or a pattern with *, a list of them, or a table label -> column. The default is every
    column with only 1, 0, -1 or blank."""
    findings: str | None = None
    """A column that lists the findings of a row, in place of labels."""
    separator: str | None = None
    """Text between two findings of a cell. The default is one finding a cell."""
    no_finding: str | None = None
    """The column that is 1 for healthy images, or the word for that in the column of findings."""
    view: str | None = None
    age: str | None = None
    sex: str | None = None
    site: str | None = None
    split: str | None = None
    values: dict[str, Target] = field(default_factory=dict)
    """Word in a label's cell -> 1, 0 or -1 (uncertain). "*" is any other word."""
    rows_per_image: RowsPerImage | None = None
    """An image has several rows (readers or boxes): it is positive if any row is, most rows are, or all are. The
    default is one row per image."""
    reader: str | None = None
    """The column of the reader, where a reader has several rows per image. A reader's rows count as one, by "any"."""
    only: dict[str, str] = field(default_factory=dict)
    """Column -> the cell of the rows to keep. Other rows are left out."""

    def is_empty(self) -> bool:
        """True if no key is set."""
        return not any(vars(self).values())
