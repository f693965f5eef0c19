"""Read a plain table: columns file and patient, one column per label, and optional columns such as view and age."""

from acuity.objectives.index.cells import Columns, IndexContent, LabelPolicy, age_years, image_table, map_distinct
from acuity.objectives.index.labels import NO_FINDING, apply_no_finding, labels_from_columns

REQUIRED_COLUMNS = ("file", "patient")
_NOT_LABELS = (*REQUIRED_COLUMNS, "view", "age", "sex", "site", "split", NO_FINDING)


def read_table(columns: Columns, policy: LabelPolicy) -> IndexContent:
    """Content of a plain table. Every other column is a label if its cells are 1, 0, -1 or blank, else rejected."""
    names = [name for name in columns.text if name and name not in _NOT_LABELS]
    labels, targets, rejected_columns = labels_from_columns(columns, names, policy)
    table = image_table(
        columns,
        file=columns.text["file"],
        patient=columns.text["patient"],
        view=columns.first_of("view"),
        age=map_distinct(columns.first_of("age"), age_years),
        sex=columns.first_of("sex"),
        site=columns.first_of("site"),
        split=columns.first_of("split"),
        no_finding=apply_no_finding(columns, labels, targets),
    )
    return IndexContent(table, labels, targets, rejected_columns)
