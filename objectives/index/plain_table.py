"""A plain table: columns file and patient, one column a label, and what else is known of an image."""

from acuity.objectives.index.cells import Columns, IndexContent, Reading, age_years, by_value, content_table
from acuity.objectives.index.labels import NO_FINDING, apply_no_finding, label_columns

NEEDS = ("file", "patient")
_NO_LABEL = (*NEEDS, "view", "age", "sex", "site", "split", NO_FINDING)


def read_table(columns: Columns, reading: Reading) -> IndexContent:
    """Every other column with nothing but 1, 0, -1 or blank cells in it is a label; the rest is set aside."""
    names = [name for name in columns.text if name and name not in _NO_LABEL]
    labels, targets, set_aside = label_columns(columns, names, reading)
    table = content_table(
        columns,
        file=columns.text["file"],
        patient=columns.text["patient"],
        view=columns.any_of("view"),
        age=by_value(columns.any_of("age"), age_years),
        sex=columns.any_of("sex"),
        site=columns.any_of("site"),
        split=columns.any_of("split"),
        no_finding=apply_no_finding(columns, labels, targets),
    )
    return IndexContent(table, labels, targets, set_aside)
