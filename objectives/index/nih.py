"""Read NIH ChestX-ray14's Data_Entry_2017.csv and Data_Entry_2017_v2020.csv."""

from acuity.objectives.index.cells import Columns, IndexContent, LabelPolicy, age_years, image_table, map_distinct
from acuity.objectives.index.labels import NO_FINDING, labels_from_lists

REQUIRED_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
OPTIONAL_COLUMNS = ("View Position", "Patient Age", "Patient Sex", "Patient Gender")


def read_nih(columns: Columns, _: LabelPolicy) -> IndexContent:
    """Content of an NIH index. Findings are written `Edema|Effusion`. In an empty cell every label is unknown."""
    labels, targets = labels_from_lists(
        columns.text["Finding Labels"], lambda cell: {name.strip() for name in cell.split("|")}, normal=NO_FINDING
    )
    table = image_table(
        columns,
        file=columns.text["Image Index"],
        patient=columns.text["Patient ID"],
        view=columns.first_of("View Position"),
        age=map_distinct(columns.first_of("Patient Age"), age_years),
        sex=columns.first_of("Patient Sex", "Patient Gender"),
        no_finding=(targets == 0).all(axis=1),
    )
    return IndexContent(table, labels, targets)
