"""PadChest: PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv."""

import ast

import numpy as np

from acuity.objectives.index.cells import OLDEST_AGE_YEARS, Columns, IndexContent, Reading, by_value, content_table
from acuity.objectives.index.labels import listed_findings

NEEDS = ("ImageID", "PatientID", "Labels")
ALSO_READS = ("Projection", "PatientBirth", "StudyDate_DICOM", "PatientSex_DICOM")
NORMAL = "normal"
SILENT = frozenset({"unchanged", "exclude", "suboptimal study"})
"""These say something about the report or the film, nothing about findings."""


def read_padchest(columns: Columns, _: Reading) -> IndexContent:
    """One row an image, its findings as a Python list of names, taken as they are: `pneumonia` is not `atypical
    pneumonia`. Age is the study's year less the year of birth."""
    labels, targets = listed_findings(columns.text["Labels"], _names, normal=NORMAL, silent=SILENT)
    born = by_value(columns.any_of("PatientBirth"), _year)
    studied = by_value(columns.any_of("StudyDate_DICOM"), lambda cell: _year(cell[:4]))
    age = (studied - born).astype(np.float64)
    table = content_table(
        columns,
        file=columns.text["ImageID"],
        patient=columns.text["PatientID"],
        view=by_value(columns.any_of("Projection"), lambda cell: "" if cell == "UNK" else cell),
        age=np.where((age >= 0) & (age <= OLDEST_AGE_YEARS), age, np.nan),
        sex=columns.any_of("PatientSex_DICOM"),
        no_finding=(targets == 0).all(axis=1),
    )
    return IndexContent(table, labels, targets)


def _names(cell: str) -> set[str]:
    """The names of `['cardiomegaly', ' pleural effusion']`; none if it is `nan` or no list."""
    try:
        listed = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return set()
    return {str(name).strip() for name in listed} if isinstance(listed, list) else set()


def _year(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
