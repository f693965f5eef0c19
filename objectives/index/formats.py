"""Which publisher's format a table has, and what is lacking where it has none of them.

A new format is one module that turns columns into findings, and its line in FORMATS.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acuity.objectives.errors import InputError
from acuity.objectives.index import chexpert as index_chexpert
from acuity.objectives.index import nih as index_nih
from acuity.objectives.index import padchest as index_padchest
from acuity.objectives.index import plain_table as index_table
from acuity.objectives.index.cells import Columns, IndexContent, Reading
from acuity.objectives.index.reader import read_columns

FormatName = Literal["nih", "chexpert", "padchest", "table"]


@dataclass(frozen=True)
class Format:
    """How one publisher writes its table."""

    called: str
    needs: tuple[str, ...]
    read: Callable[[Columns, Reading], IndexContent]
    also_reads: tuple[str, ...] | None = None
    """Columns that may be absent; None: every column, since any may be a label."""


FORMATS: dict[FormatName, Format] = {
    "nih": Format("an NIH index", index_nih.NEEDS, index_nih.read_nih, index_nih.ALSO_READS),
    "padchest": Format(
        "a PadChest index", index_padchest.NEEDS, index_padchest.read_padchest, index_padchest.ALSO_READS
    ),
    "table": Format("a plain table", index_table.NEEDS, index_table.read_table),
    "chexpert": Format("a CheXpert index", index_chexpert.NEEDS, index_chexpert.read_chexpert),
}


def read_content(path: Path, *, format_name: FormatName | None = None, reading: Reading | None = None) -> IndexContent:
    """Read a table (.csv, also gzipped, or Parquet) whose format is named, or told by its columns."""
    found: list[Format] = []

    def wanted(header: list[str]) -> Sequence[str]:
        form = _format_of(path, header) if format_name is None else FORMATS[format_name]
        _check_columns(path, header, form)
        found.append(form)
        return header if form.also_reads is None else form.needs + form.also_reads

    columns = read_columns(path, wanted)
    return found[0].read(columns, reading or Reading())


def nearest(wrong: str, there: Sequence[str]) -> str:
    """The end of a message about a name that is not there: the one that was probably meant, or all of them."""
    by_lower = {name.lower(): name for name in there}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=1)
    if near:
        return f'The nearest there is "{by_lower[near[0]]}"'
    return f"There are: {', '.join(there)}" if there else "There are none"


def _format_of(path: Path, header: list[str]) -> Format:
    """The format that has all its columns there, or else most of them; of two, the one that needs more."""

    def fit(form: Format) -> tuple[bool, int]:
        there = sum(column in header for column in form.needs)
        return there == len(form.needs), there

    likeliest = max(FORMATS.values(), key=fit)
    if fit(likeliest) == (False, 0):
        raise _no_header(path, FORMATS.values())
    return likeliest


def _check_columns(path: Path, header: list[str], form: Format) -> None:
    missing = [column for column in form.needs if column not in header]
    if len(missing) == len(form.needs):
        raise _no_header(path, [form])
    if missing:
        raise InputError(
            f'{path}: has no column "{missing[0]}", which {form.called} needs. {nearest(missing[0], header)}'
        )


def _no_header(path: Path, forms: Iterable[Format]) -> InputError:
    """The first line may be a patient's, so it is not repeated here."""
    known = "; ".join(f"{form.called}: {', '.join(form.needs)}" for form in forms)
    return InputError(
        f"{path}: its first line has none of the columns of an index ({known}): it must be the header, with commas "
        "between the names"
    )
