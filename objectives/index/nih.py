"""NIH ChestX-ray14: Data_Entry_2017.csv and Data_Entry_2017_v2020.csv."""

from acuity.objectives.index.cells import Columns, IndexContent, Reading, age_years, by_value, content_table
from acuity.objectives.index.labels import NO_FINDING, listed_findings

NEEDS = ("Image Index", "Finding Labels", "Patient ID")
ALSO_READS = ("View Position", "Patient Age", "Patient Sex", "Patient Gender")


def read_nih(columns: Columns, _: Reading) -> IndexContent:
    """One row an image, its findings as `Edema|Effusion`; an empty cell says nothing about any label."""
    labels, targets = listed_findings(
        columns.text["Finding Labels"], lambda cell: {name.strip() for name in cell.split("|")}, normal=NO_FINDING
    )
    table = content_table(
        columns,
        file=columns.text["Image Index"],
        patient=columns.text["Patient ID"],
        view=columns.any_of("View Position"),
        age=by_value(columns.any_of("Patient Age"), age_years),
        sex=columns.any_of("Patient Sex", "Patient Gender"),
        no_finding=(targets == 0).all(axis=1),
    )
    return IndexContent(table, labels, targets)
