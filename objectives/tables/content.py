"""Detect a table's format and read its content."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from acuity.objectives.errors import InputError
from acuity.objectives.tables.cells import ColumnError, IndexContent, LabelPolicy
from acuity.objectives.tables.column_mapping import ColumnMapping, FormatName
from acuity.objectives.tables.formats import FORMATS, Format
from acuity.objectives.tables.mapped_table import label_columns, named_columns, read_mapped
from acuity.objectives.tables.names import suggest_name
from acuity.objectives.tables.reader import read_columns
from acuity.objectives.tables.suspicions import odd_patients, similar_labels, unknown_words
from acuity.objectives.tables.unknown_table import mapping_hint


def read_content(
    path: Path,
    *,
    format_name: FormatName | None = None,
    mapping: ColumnMapping | None = None,
    policy: LabelPolicy | None = None,
) -> IndexContent:
    """Read a table.

    format_name None: the columns decide. mapping: columns that replace those of the format. A mapping of file and
    patient needs no format: the table is then a plain one with other names.
    """
    chosen: list[tuple[FormatName, Format]] = []

    def select(header: list[str]) -> Sequence[str]:
        name = format_name or _find_format(path, header, mapping)
        chosen.append((name, _resolve(path, header, name, mapping)))
        return _columns_to_read(header, chosen[0][1])

    columns = read_columns(path, select)
    name, form = chosen[0]
    if form.aliases:
        text = {form.aliases.get(column, column): cells for column, cells in columns.text.items()}
        columns = replace(columns, text=text)
    policy = policy or LabelPolicy()
    try:
        if form.mapping is not None:
            content = read_mapped(columns, policy, form.mapping)
        else:
            assert form.read is not None
            content = form.read(columns, policy)
    except ColumnError as error:
        raise InputError(f"{path}: {error}") from None
    found = (*odd_patients(content), *similar_labels(content), *unknown_words(columns, content))
    return replace(content, suspicions=(*content.suspicions, *found), format_name=name)


def _find_format(path: Path, header: list[str], mapping: ColumnMapping | None) -> FormatName:
    """The format with all its required columns in the header; of several, the one with most."""
    if mapping is not None and mapping.file and mapping.patient:
        return "table"

    missing = {name: sum(column not in header for column in form.required) for name, form in FORMATS.items()}
    whole = [name for name, count in missing.items() if not count]
    nearly = [name for name, count in missing.items() if count == 1 and name in _RECOGNISED_BY_MOST]
    if whole or nearly:
        return max(whole or nearly, key=lambda name: len(FORMATS[name].required))
    raise _unknown_table(path, header)


_RECOGNISED_BY_MOST = ("nih", "padchest", "covid", "table")
"""Formats of which the error for one missing column names the format."""


def _resolve(path: Path, header: list[str], name: FormatName, mapping: ColumnMapping | None) -> Format:
    """The format, with the mapping's columns in place of its own. InputError if a column is missing."""
    form = FORMATS[name]
    given = mapping or ColumnMapping()
    if not given.is_empty() and form.mapping is None:
        raise InputError(
            f"{path}: is {form.description}, whose columns are fixed; leave out [data] columns, or name file and "
            'patient in it and set format = "table"'
        )
    form = _used_aliases(form, header, given)
    _check_required(path, header, form, given)
    _check_given(path, header, given)
    if form.mapping is None:
        return form
    replaced = {key.name for key in fields(ColumnMapping) if getattr(given, key.name) not in (None, {})}
    own = _present(form.mapping, [form.aliases.get(column, column) for column in header])
    if replaced & {"labels", "findings"}:
        own = replace(own, labels=None, findings=None, separator=None)
    return replace(form, mapping=replace(own, **{key: getattr(given, key) for key in replaced}))


def _used_aliases(form: Format, header: Sequence[str], given: ColumnMapping) -> Format:
    """The format with the aliases that this header uses and the mapping does not name."""
    named = {column for _, column in named_columns(given)}
    used = {other: name for other, name in form.aliases.items() if other in header and other not in named}
    return replace(form, aliases=used)


def _present(mapping: ColumnMapping, header: Sequence[str]) -> ColumnMapping:
    """A published mapping without the columns that this release does not have."""
    absent: dict[str, Any] = {
        key: None for key, column in named_columns(mapping) if column not in header and key not in _NEVER_ABSENT
    }
    labels = mapping.labels
    if isinstance(labels, tuple):
        labels = tuple(name for name in labels if name in header)
    only = {column: cell for column, cell in mapping.only.items() if column in header}
    return replace(mapping, **absent, labels=labels, only=only)


_NEVER_ABSENT = ("file", "patient", "labels", "only")


def _columns_to_read(header: list[str], form: Format) -> Sequence[str]:
    if form.mapping is None:
        return header if form.optional is None else form.required + form.optional
    if form.mapping.labels is None and form.mapping.findings is None:
        return header
    back = {name: other for other, name in form.aliases.items()}
    names = [column for _, column in named_columns(form.mapping)]
    if form.mapping.findings is None:
        names += [*label_columns(form.mapping, header).values(), form.mapping.no_finding or "No Finding"]
    return list(dict.fromkeys(back.get(name, name) for name in names))


def _check_required(path: Path, header: list[str], form: Format, given: ColumnMapping) -> None:
    """InputError if a column is missing that the format needs and the mapping does not replace."""
    if given.file and given.patient and form.mapping is not None:
        return
    needed = form.required
    if form.mapping is not None and (given.file or given.patient):
        own = ColumnMapping(file=None if given.file else form.mapping.file, patient=form.mapping.patient)
        own = replace(own, patient=None) if given.patient else own
        needed = tuple(column for _, column in named_columns(own))
    missing = [column for column in needed if column not in header]
    if missing and len(missing) == len(form.required):
        raise _no_header(path, header, form)
    if missing:
        raise InputError(
            f'{path}: has no column "{missing[0]}", which {form.description} needs. '
            f"{suggest_name(missing[0], header)}. {mapping_hint(header)}"
        )


def _check_given(path: Path, header: list[str], given: ColumnMapping) -> None:
    for key, column in named_columns(given):
        if column not in header:
            raise InputError(
                f'{path}: has no column "{column}", which [data] columns.{key} names. {suggest_name(column, header)}'
            )
    if given.labels is not None and not label_columns(given, header):
        raise InputError(f"{path}: no column fits [data] columns.labels. There are: {', '.join(header)}")


def _no_header(path: Path, header: Sequence[str], form: Format) -> InputError:
    return InputError(
        f"{path}: its first line has none of the columns of an index ({form.description}: "
        f"{', '.join(form.required)}): it must be the header, with commas between the names. {mapping_hint(header)}"
    )


def _unknown_table(path: Path, header: Sequence[str]) -> InputError:
    """The error for columns of no format. It quotes only names that look like a file's or a patient's column."""
    return InputError(
        f"{path}: its first line has the columns of no known format; it must be the header, with commas between the "
        f"names. {mapping_hint(header)}"
    )
