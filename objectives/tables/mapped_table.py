"""Read a table by a mapping of its columns: one row per image, or several rows of readers or boxes per image."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from acuity.objectives.tables.cells import (
    ColumnError,
    Columns,
    IndexContent,
    LabelPolicy,
    age_years,
    factorize,
    image_table,
    map_distinct,
)
from acuity.objectives.tables.column_mapping import EACH_FILE, ColumnMapping, RowsPerImage
from acuity.objectives.tables.labels import (
    NO_FINDING,
    TARGETS,
    apply_no_finding,
    labels_from_columns,
    labels_from_lists,
)

_FIELD = re.compile(r"\{([^{}]+?)(?::\.(\d+))?\}")
_SINGLE_COLUMNS = ("findings", "no_finding", "view", "age", "sex", "site", "split", "reader")
_UNKNOWN_FINDINGS = frozenset({"todo", "Unknown"})  # covid-chestxray-dataset


@dataclass(frozen=True, eq=False)
class _Findings:
    """Labels and targets by row."""

    labels: tuple[str, ...]
    targets: np.ndarray
    """float32 [rows, labels]."""
    no_finding: np.ndarray
    """float32 [rows]: 1 healthy, 0 not known to be healthy."""
    rejected: Mapping[str, str]


def read_mapped(columns: Columns, policy: LabelPolicy, mapping: ColumnMapping) -> IndexContent:
    """Content of a table. mapping: its columns, of which those of file and patient are named.

    Without labels and findings, every other column is a label if its cells are 1, 0, -1 or blank, else rejected.
    ColumnError names the line and the rule.
    """
    columns, notes = _keep_rows(columns, mapping.only)
    assert mapping.file
    assert mapping.patient
    files = _cells(columns, mapping.file)
    patients = files if mapping.patient == EACH_FILE else _cells(columns, mapping.patient)
    findings = _listed(columns, mapping) if mapping.findings else _by_column(columns, mapping, policy)
    targets = findings.targets
    table = image_table(
        columns,
        file=files,
        patient=patients,
        view=columns.first_of(mapping.view or ""),
        age=map_distinct(columns.first_of(mapping.age or ""), age_years),
        sex=columns.first_of(mapping.sex or ""),
        site=columns.first_of(mapping.site or ""),
        split=columns.first_of(mapping.split or ""),
        no_finding=findings.no_finding == 1,
    )
    if mapping.rows_per_image is not None:
        first, targets, no_finding = _combine_rows(columns, table, findings, mapping, policy)
        table = table.iloc[first].reset_index(drop=True)
        table["no_finding"] = no_finding == 1
    return IndexContent(
        table,
        findings.labels,
        targets,
        findings.rejected,
        suspicions=notes,
        headings={name: heading for name, heading in (("sex", mapping.sex), ("age", mapping.age)) if heading},
        has_patients=mapping.patient != EACH_FILE,
    )


def named_columns(mapping: ColumnMapping) -> Iterator[tuple[str, str]]:
    """(key, column) of each column that a mapping names, labels with a * left out."""
    for key in ("file", "patient"):
        value = getattr(mapping, key)
        if value and not (key == "patient" and value == EACH_FILE):
            yield from ((key, name) for name in _fields(value) or [value])
    for key in _SINGLE_COLUMNS:
        if (value := getattr(mapping, key)) and not (key == "no_finding" and mapping.findings):
            yield key, value
    yield from (("only", name) for name in mapping.only)
    yield from (("labels", name) for name in _label_names(mapping).values() if "*" not in name)


def label_columns(mapping: ColumnMapping, header: Sequence[str]) -> dict[str, str]:
    """Label -> column. A name with * stands for every column that fits it and that the mapping does not name."""
    named = {name for key, name in named_columns(mapping) if key != "labels"} | {mapping.no_finding or NO_FINDING}
    found = {}
    for label, name in (_label_names(mapping) or {"*": "*"}).items():
        if name in header:
            found[label] = name
        else:
            found |= {other: other for other in header if other and other not in named and fnmatchcase(other, name)}
    return found


def _label_names(mapping: ColumnMapping) -> dict[str, str]:
    if isinstance(mapping.labels, dict):
        # The order of the labels is part of the index's SHA-256, and the database keeps no order of a table's keys.
        return dict(sorted(mapping.labels.items()))
    names = (mapping.labels,) if isinstance(mapping.labels, str) else mapping.labels or ()
    return {name: name for name in names}


def _fields(pattern: str) -> list[str]:
    return [found[1] for found in _FIELD.finditer(pattern)]


def _cells(columns: Columns, pattern: str) -> Sequence[str]:
    """A column, or the texts of a pattern over columns. Blank if a part is blank."""
    if pattern in columns.text:
        return columns.text[pattern]
    parts = _FIELD.split(pattern)
    between, names, lengths = parts[::3], parts[1::3], parts[2::3]
    cells = [
        [cell[: int(length)] if length else cell for cell in columns.text[name]]
        for name, length in zip(names, lengths, strict=True)
    ]
    return [
        "".join(text for pair in zip(between, (*row, ""), strict=True) for text in pair) if all(row) else ""
        for row in zip(*cells, strict=True)
    ]


def _keep_rows(columns: Columns, only: Mapping[str, str]) -> tuple[Columns, tuple[str, ...]]:
    """The rows with these cells, and a note with the number of the others."""
    keep = np.ones(len(columns.lines), dtype=bool)
    for name, cell in only.items():
        keep &= np.array([text == cell for text in columns.text[name]])
    if keep.all():
        return columns, ()
    wanted = " and ".join(f"{name} = {cell}" for name, cell in only.items())
    if not keep.any():
        raise ColumnError(f"has no row with {wanted}; [data] columns.only names the rows to keep")
    rows = np.flatnonzero(keep).tolist()
    kept = Columns(
        [columns.lines[row] for row in rows],
        {name: [cells[row] for row in rows] for name, cells in columns.text.items()},
        columns.path,
    )
    return kept, (f"{len(keep) - len(rows):,} rows are left out: {wanted} is in the others alone.",)


def _listed(columns: Columns, mapping: ColumnMapping) -> _Findings:
    """Findings of a column that lists them."""
    assert mapping.findings
    separator, normal = mapping.separator, mapping.no_finding or NO_FINDING

    def names(cell: str) -> set[str]:
        return {name.strip() for name in (cell.split(separator) if separator else [cell])}

    labels, targets = labels_from_lists(
        columns.text[mapping.findings], names, normal=normal, ignored=_UNKNOWN_FINDINGS - {normal}
    )
    return _Findings(labels, targets, (targets == 0).all(axis=1).astype(np.float32), {})


def _by_column(columns: Columns, mapping: ColumnMapping, policy: LabelPolicy) -> _Findings:
    """Findings of one column per label."""
    named = label_columns(mapping, list(columns.text))
    labels, targets, rejected = labels_from_columns(columns, named, policy, mapping.values)
    no_finding = apply_no_finding(
        columns, named, labels, targets, name=mapping.no_finding or NO_FINDING, values=mapping.values
    )
    return _Findings(labels, targets, no_finding, rejected)


def _combine_rows(
    columns: Columns, table: pd.DataFrame, findings: _Findings, mapping: ColumnMapping, policy: LabelPolicy
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row of each image int64 [images], its targets float32 [images, labels] and no_finding float32 [images]."""
    assert mapping.rows_per_image
    image, _ = factorize(table["file"].to_numpy(object))
    _, first = np.unique(image, return_index=True)
    for name in ("patient", "split"):
        cells = table[name].to_numpy(object)
        other = cells != cells[first[image]]
        if other.any():
            row = int(other.argmax())
            raise ColumnError(
                f"index line {columns.lines[row]:,} has another {name} than line {columns.lines[first[image[row]]]:,}, "
                "which names the same image: correct one of them"
            )
    values = np.column_stack([findings.targets, findings.no_finding])
    if mapping.reader:
        group, _ = factorize([f"{i}/{reader}" for i, reader in zip(image, columns.text[mapping.reader], strict=True)])
        values = _combine(values, group, "any", uncertain=np.nan)
        _, rows = np.unique(group, return_index=True)
        image = image[rows]
    uncertain = TARGETS[policy.uncertain]
    targets = _combine(values[:, :-1], image, mapping.rows_per_image, uncertain=uncertain)
    return first, targets, _combine(values[:, -1:], image, mapping.rows_per_image, uncertain=np.nan)[:, 0]


def _combine(values: np.ndarray, group: np.ndarray, rule: RowsPerImage, *, uncertain: float) -> np.ndarray:
    """float32 [groups, columns] of values [rows, columns] in {0, 1, NaN}. A column without a known value is NaN.

    uncertain: the value of a column with as many 1 as 0, by "majority".
    """
    groups = pd.DataFrame(values).groupby(group)
    if rule == "any":
        combined = groups.max()
    elif rule == "all":
        combined = groups.min()
    else:
        share = groups.mean()
        combined = (share > 0.5).astype(float).where(share != 0.5, uncertain).where(share.notna())
    return combined.to_numpy(np.float32)
