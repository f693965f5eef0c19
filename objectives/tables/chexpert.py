"""Read CheXpert's train.csv and valid.csv, and the labels of CheXpert Plus.

Each label has a column with 1, 0, -1 (uncertain) or blank (not mentioned).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from acuity.objectives.tables.cells import (
    ColumnError,
    Columns,
    IndexContent,
    LabelPolicy,
    age_years,
    image_table,
    map_distinct,
)
from acuity.objectives.tables.labels import NO_FINDING, apply_no_finding, labels_from_columns
from acuity.objectives.tables.reader import read_columns

REQUIRED_COLUMNS = ("Path",)
PLUS_REQUIRED_COLUMNS = ("path_to_image",)
_NOT_LABELS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", NO_FINDING)
_PLUS_DEMOGRAPHICS = ("path_to_image", "frontal_lateral", "ap_pa", "age", "sex")
_RELEASE = re.compile(r"(?:\./)?(CheXpert[^/]*)/")


def read_chexpert(columns: Columns, policy: LabelPolicy) -> IndexContent:
    """Content of a CheXpert index. The path holds the release's folder and the patient. Lateral images have view `L`.

    Any row may start with a release's folder, and its separators may be backslashes. CheXpert's patients are adults, so
    an age of 0 is unknown. ColumnError if no path holds a patient.
    """
    names = [name for name in columns.text if name and name not in _NOT_LABELS]
    return _content(
        columns,
        policy,
        paths=columns.text["Path"],
        labels=names,
        frontal=columns.first_of("Frontal/Lateral"),
        position=columns.first_of("AP/PA"),
        age=columns.first_of("Age"),
        sex=columns.first_of("Sex"),
        headings={"age": "Age", "sex": "Sex"},
    )


def read_chexpert_plus(columns: Columns, policy: LabelPolicy) -> IndexContent:
    """Content of a file of labels of CheXpert Plus (JSON Lines), with view, age and sex of its table.

    The table is df_chexpert_plus_*.csv in the folder of the labels or the one above. Without it these are unknown.
    ColumnError if the index is that table, which has no labels.
    """
    if NO_FINDING not in columns.text:
        raise ColumnError(
            "is a table of CheXpert Plus without labels; name a file of its labels as [data] index, such as "
            "impression_fixed.json"
        )
    table = _plus_table(columns.path)
    place = {} if table is None else {path: row for row, path in enumerate(table.text["path_to_image"])}
    paths = columns.text["path_to_image"]

    def of_table(name: str) -> Sequence[str]:
        cells = [] if table is None else table.first_of(name)
        return [cells[place[path]] if path in place else "" for path in paths]

    return _content(
        columns,
        policy,
        paths=paths,
        labels=[name for name in columns.text if name not in (NO_FINDING, "path_to_image")],
        frontal=of_table("frontal_lateral"),
        position=of_table("ap_pa"),
        age=of_table("age"),
        sex=of_table("sex"),
        headings={},
        folder="PNG",
    )


def _plus_table(labels: Path) -> Columns | None:
    for folder in (labels.parent, labels.parent.parent):
        tables = sorted(folder.glob("df_chexpert_plus_*.csv"))
        if tables:
            return read_columns(tables[-1], lambda _: _PLUS_DEMOGRAPHICS)
    return None


def _content(
    columns: Columns,
    policy: LabelPolicy,
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    frontal: Sequence[str],
    position: Sequence[str],
    age: Sequence[str],
    sex: Sequence[str],
    headings: dict[str, str],
    folder: str = "",
) -> IndexContent:
    paths = [path.replace("\\", "/") for path in paths]
    files = [path[match.end() :] if (match := _RELEASE.match(path)) else path for path in paths]
    patients = [_patient(path) for path in files]
    if not any(patients):
        raise ColumnError(
            "has no patient in any path (CheXpert's are train/patient00001/study1/...); for another table write its "
            "columns under [data]: " + 'columns = { file = "' + next(iter(columns.text)) + '", patient = "..." }'
        )
    named = {name: name for name in labels}
    found_labels, targets, rejected = labels_from_columns(columns, named, policy)
    no_finding = apply_no_finding(columns, named, found_labels, targets)
    table = image_table(
        columns,
        file=files,
        patient=patients,
        view=["L" if side == "Lateral" else view for side, view in zip(frontal, position, strict=True)],
        age=map_distinct(age, lambda cell: age_years(cell) or float("nan")),
        sex=sex,
        no_finding=no_finding == 1,
    )
    release = next((match[1] for path in paths if (match := _RELEASE.match(path))), folder)
    return IndexContent(table, found_labels, targets, rejected, folder=release, headings=headings)


def _patient(path: str) -> str:
    found = re.search(r"(?:^|/)(patient\d+)/", path)
    return found[1] if found else ""
