"""Read CheXpert's train.csv and valid.csv: one column per label with 1, 0, -1 (uncertain) or blank (not mentioned)."""

import re

from acuity.objectives.index.cells import Columns, IndexContent, LabelPolicy, age_years, image_table, map_distinct
from acuity.objectives.index.labels import NO_FINDING, apply_no_finding, labels_from_columns

REQUIRED_COLUMNS = ("Path",)
_NOT_LABELS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", NO_FINDING)


def read_chexpert(columns: Columns, policy: LabelPolicy) -> IndexContent:
    """Content of a CheXpert index. The path holds the release's folder and the patient. Lateral images have view `L`.

    CheXpert's patients are adults, so an age of 0 is unknown.
    """
    paths = columns.text["Path"]
    folder = re.match(r"CheXpert[^/]*", paths[0])
    prefix = f"{folder[0]}/" if folder else ""
    names = [name for name in columns.text if name and name not in _NOT_LABELS]
    labels, targets, rejected_columns = labels_from_columns(columns, names, policy)
    frontal, position = columns.first_of("Frontal/Lateral"), columns.first_of("AP/PA")
    no_finding = apply_no_finding(columns, labels, targets)
    table = image_table(
        columns,
        file=[path.removeprefix(prefix) for path in paths],
        patient=[_patient(path) for path in paths],
        view=["L" if side == "Lateral" else view for side, view in zip(frontal, position, strict=True)],
        age=map_distinct(columns.first_of("Age"), lambda cell: age_years(cell) or float("nan")),
        sex=columns.first_of("Sex"),
        no_finding=no_finding,
    )
    return IndexContent(table, labels, targets, rejected_columns, folder=prefix.rstrip("/"))


def _patient(path: str) -> str:
    found = re.search(r"(?:^|/)(patient\d+)/", path)
    return found[1] if found else ""
