"""Read PadChest's PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv."""

import ast

import numpy as np

from acuity.objectives.tables.cells import (
    OLDEST_AGE_YEARS,
    Columns,
    IndexContent,
    LabelPolicy,
    image_table,
    map_distinct,
)
from acuity.objectives.tables.labels import labels_from_lists

REQUIRED_COLUMNS = ("ImageID", "PatientID", "Labels")
OPTIONAL_COLUMNS = ("Projection", "PatientBirth", "StudyDate_DICOM", "PatientSex_DICOM")
_NORMAL = "normal"
_IGNORED = frozenset({"unchanged", "exclude", "suboptimal study"})
"""Words about the report or the image, not about findings."""


def read_padchest(columns: Columns, _: LabelPolicy) -> IndexContent:
    """Content of a PadChest index. Findings are a Python list of names, each a label: `pneumonia` does not include
    `atypical pneumonia`. The age is the year of the study minus the year of birth.
    """
    labels, targets = labels_from_lists(columns.text["Labels"], _names, normal=_NORMAL, ignored=_IGNORED)
    birth_year = map_distinct(columns.first_of("PatientBirth"), _year)
    study_year = map_distinct(columns.first_of("StudyDate_DICOM"), lambda cell: _year(cell[:4]))
    age = (study_year - birth_year).astype(np.float64)
    table = image_table(
        columns,
        file=columns.text["ImageID"],
        patient=columns.text["PatientID"],
        view=map_distinct(columns.first_of("Projection"), lambda cell: "" if cell == "UNK" else cell),
        age=np.where((age >= 0) & (age <= OLDEST_AGE_YEARS), age, np.nan),
        sex=columns.first_of("PatientSex_DICOM"),
        no_finding=(targets == 0).all(axis=1),
    )
    return IndexContent(table, labels, targets, headings={"sex": "PatientSex_DICOM"})


def _names(cell: str) -> set[str]:
    """The names of `['cardiomegaly', ' pleural effusion']`. Empty if the cell is `nan` or not a list."""
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
