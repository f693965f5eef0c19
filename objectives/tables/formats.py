"""Detect a table's format and read its content.

A new format is a mapping of its columns in FORMATS. A format that no mapping describes is a module that turns columns
into `IndexContent`. Its name is in column_mapping.py.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from acuity.objectives.errors import InputError
from acuity.objectives.tables import chexpert, mimic, padchest, tuberculosis
from acuity.objectives.tables.cells import ColumnError, Columns, IndexContent, LabelPolicy
from acuity.objectives.tables.column_mapping import EACH_FILE, ColumnMapping, FormatName
from acuity.objectives.tables.mapped_table import label_columns, named_columns, read_mapped
from acuity.objectives.tables.reader import read_columns
from acuity.objectives.tables.suspicions import odd_patients, similar_labels, unknown_words
from acuity.objectives.tables.unknown_table import mapping_hint

_CHEXPERT_LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """The columns of a publisher's table, and how they are read: by a mapping or by a function."""

    description: str
    required: tuple[str, ...]
    mapping: ColumnMapping | None = None
    read: Callable[[Columns, LabelPolicy], IndexContent] | None = None
    optional: tuple[str, ...] | None = None
    """Columns that the function reads if present. None: every column, since any may be a label."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Another name of a column in some releases -> the name in the mapping."""


FORMATS: dict[FormatName, Format] = {
    "nih": Format(
        "an NIH index",
        ("Image Index", "Finding Labels", "Patient ID"),
        ColumnMapping(
            file="Image Index",
            patient="Patient ID",
            findings="Finding Labels",
            separator="|",
            view="View Position",
            age="Patient Age",
            sex="Patient Sex",
        ),
        aliases={"Patient Gender": "Patient Sex"},
    ),
    "chexpert": Format("a CheXpert index", chexpert.REQUIRED_COLUMNS, read=chexpert.read_chexpert),
    "chexpert-plus": Format(
        "a file of labels of CheXpert Plus", chexpert.PLUS_REQUIRED_COLUMNS, read=chexpert.read_chexpert_plus
    ),
    "padchest": Format(
        "a PadChest index",
        padchest.REQUIRED_COLUMNS,
        read=padchest.read_padchest,
        optional=padchest.OPTIONAL_COLUMNS,
    ),
    "mimic": Format("a table of MIMIC-CXR-JPG", mimic.REQUIRED_COLUMNS, read=mimic.read_mimic),
    "vindr": Format(
        "a VinDr-CXR table of readers",
        ("image_id", "No finding"),
        ColumnMapping(
            file="{image_id}.dicom",
            patient=EACH_FILE,
            no_finding="No finding",
            rows_per_image="majority",
            reader="rad_id",
        ),
        aliases={"rad_ID": "rad_id"},
    ),
    "vindr-boxes": Format(
        "a VinDr-CXR table of boxes",
        ("image_id", "class_name"),
        ColumnMapping(
            file="{image_id}.dicom",
            patient=EACH_FILE,
            findings="class_name",
            no_finding="No finding",
            rows_per_image="majority",
            reader="rad_id",
        ),
        aliases={"rad_ID": "rad_id"},
    ),
    "rsna": Format(
        "the RSNA pneumonia table",
        ("patientId", "Target"),
        ColumnMapping(file="{patientId}.dcm", patient=EACH_FILE, labels={"Pneumonia": "Target"}, rows_per_image="any"),
    ),
    "siim": Format(
        "the SIIM-ACR pneumothorax table",
        ("ImageId", "EncodedPixels"),
        ColumnMapping(
            file="{ImageId}.dcm",
            patient=EACH_FILE,
            labels={"Pneumothorax": "EncodedPixels"},
            values={"-1": 0, "*": 1},
            rows_per_image="any",
        ),
    ),
    "brax": Format(
        "a BRAX index",
        ("PngPath", "PatientID"),
        ColumnMapping(
            file="PngPath",
            patient="PatientID",
            labels=_CHEXPERT_LABELS,
            no_finding="No Finding",
            view="ViewPosition",
            age="PatientAge",
            sex="PatientSex",
        ),
    ),
    "covid": Format(
        "the table of covid-chestxray-dataset",
        ("patientid", "finding", "filename"),
        ColumnMapping(
            file="filename",
            patient="patientid",
            findings="finding",
            separator="/",
            view="view",
            age="age",
            sex="sex",
            site="location",
            only={"modality": "X-ray"},
        ),
    ),
    "tuberculosis": Format(
        "the table of the Shenzhen or Montgomery set",
        tuberculosis.REQUIRED_COLUMNS,
        read=tuberculosis.read_tuberculosis,
    ),
    "table": Format(
        "a plain table",
        ("file", "patient"),
        ColumnMapping(
            file="file",
            patient="patient",
            no_finding="No Finding",
            view="view",
            age="age",
            sex="sex",
            site="site",
            split="split",
        ),
    ),
}


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


def suggest_name(wrong: str, known: Sequence[str]) -> str:
    """The last sentence of a message about an unknown name: the most similar known name, or all of them."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=1)
    if near:
        return f'The nearest there is "{by_lower[near[0]]}"'
    return f"There are: {', '.join(known)}" if known else "There are none"


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
            f"{path}: is {form.description}, whose columns are fixed; leave [data] columns away, or name file and "
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
