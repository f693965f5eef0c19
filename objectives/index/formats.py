"""Detect a table's format and read its content.

A new format is one module that turns columns into `IndexContent`, one name in format_names.py and one entry in FORMATS.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acuity.objectives.errors import InputError
from acuity.objectives.index import chexpert, nih, padchest, plain_table
from acuity.objectives.index.cells import ColumnError, Columns, IndexContent, LabelPolicy
from acuity.objectives.index.format_names import FormatName
from acuity.objectives.index.reader import read_columns
from acuity.objectives.index.suspicions import similar_labels, unknown_words


@dataclass(frozen=True)
class Format:
    """The columns of a publisher's table, and the function that reads them."""

    description: str
    required: tuple[str, ...]
    read: Callable[[Columns, LabelPolicy], IndexContent]
    optional: tuple[str, ...] | None = None
    """Columns that are read if present. None: every column, since any may be a label."""


FORMATS: dict[FormatName, Format] = {
    "nih": Format("an NIH index", nih.REQUIRED_COLUMNS, nih.read_nih, nih.OPTIONAL_COLUMNS),
    "padchest": Format(
        "a PadChest index", padchest.REQUIRED_COLUMNS, padchest.read_padchest, padchest.OPTIONAL_COLUMNS
    ),
    "table": Format("a plain table", plain_table.REQUIRED_COLUMNS, plain_table.read_table),
    "chexpert": Format("a CheXpert index", chexpert.REQUIRED_COLUMNS, chexpert.read_chexpert),
}


def read_content(
    path: Path, *, format_name: FormatName | None = None, policy: LabelPolicy | None = None
) -> IndexContent:
    """Read a table (.csv, also gzipped, or Parquet). format_name None: the columns decide."""
    used: list[Format] = []

    def select(header: list[str]) -> Sequence[str]:
        form = _detect_format(path, header) if format_name is None else FORMATS[format_name]
        _check_columns(path, header, form)
        used.append(form)
        return header if form.optional is None else form.required + form.optional

    columns = read_columns(path, select)
    try:
        content = used[0].read(columns, policy or LabelPolicy())
    except ColumnError as error:
        raise InputError(f"{path}: {error}") from None
    return replace(content, suspicions=(*similar_labels(content), *unknown_words(columns, content)))


def suggest_name(wrong: str, known: Sequence[str]) -> str:
    """The last sentence of a message about an unknown name: the most similar known name, or all of them."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=1)
    if near:
        return f'The nearest there is "{by_lower[near[0]]}"'
    return f"There are: {', '.join(known)}" if known else "There are none"


def _detect_format(path: Path, header: list[str]) -> Format:
    """The format with all its required columns in the header, else with most of them. Of two, the one with more."""

    def match(form: Format) -> tuple[bool, int]:
        present = sum(column in header for column in form.required)
        return present == len(form.required), present

    best = max(FORMATS.values(), key=match)
    if match(best) == (False, 0):
        raise _no_header(path, FORMATS.values())
    return best


def _check_columns(path: Path, header: list[str], form: Format) -> None:
    missing = [column for column in form.required if column not in header]
    if len(missing) == len(form.required):
        raise _no_header(path, [form])
    if missing:
        raise InputError(
            f'{path}: has no column "{missing[0]}", which {form.description} needs. {suggest_name(missing[0], header)}'
        )


def _no_header(path: Path, forms: Iterable[Format]) -> InputError:
    """The error for a first line that is not a header. It does not quote the line, which may name a patient."""
    known = "; ".join(f"{form.description}: {', '.join(form.required)}" for form in forms)
    return InputError(
        f"{path}: its first line has none of the columns of an index ({known}): it must be the header, with commas "
        "between the names"
    )
