"""CheXpert: train.csv and valid.csv, one column a label with 1, 0, -1 (uncertain) or nothing (not mentioned)."""

import re

from acuity.objectives.index.cells import Columns, IndexContent, Reading, age_years, by_value, content_table
from acuity.objectives.index.labels import NO_FINDING, apply_no_finding, label_columns

NEEDS = ("Path",)
_NO_LABEL = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", NO_FINDING)


def read_chexpert(columns: Columns, reading: Reading) -> IndexContent:
    """The patient is in the path, which starts with the release's folder; laterals have the view `L`. Its patients are
    adults: an age of 0 is not known."""
    paths = columns.text["Path"]
    folder = re.match(r"CheXpert[^/]*", paths[0])
    prefix = f"{folder[0]}/" if folder else ""
    names = [name for name in columns.text if name and name not in _NO_LABEL]
    labels, targets, set_aside = label_columns(columns, names, reading)
    frontal, position = columns.any_of("Frontal/Lateral"), columns.any_of("AP/PA")
    no_finding = apply_no_finding(columns, labels, targets)
    table = content_table(
        columns,
        file=[path.removeprefix(prefix) for path in paths],
        patient=[_patient(path) for path in paths],
        view=["L" if side == "Lateral" else view for side, view in zip(frontal, position, strict=True)],
        age=by_value(columns.any_of("Age"), lambda cell: age_years(cell) or float("nan")),
        sex=columns.any_of("Sex"),
        no_finding=no_finding,
    )
    return IndexContent(table, labels, targets, set_aside, folder=prefix.rstrip("/"))


def _patient(path: str) -> str:
    found = re.search(r"(?:^|/)(patient\d+)/", path)
    return found[1] if found else ""
