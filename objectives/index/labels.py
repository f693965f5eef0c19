"""Labels and targets of an index: from cells that list findings, or from one column per label."""

from collections.abc import Callable, Sequence

import numpy as np

from acuity.objectives.index.cells import ColumnError, Columns, LabelPolicy, factorize, map_distinct, plain_cell

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"


def labels_from_lists(
    cells: Sequence[str], names_in: Callable[[str], set[str]], *, normal: str, ignored: frozenset[str] = frozenset()
) -> tuple[tuple[str, ...], np.ndarray]:
    """Labels, and targets float32 [N, labels], of cells that list findings. A finding that is not listed is absent.

    normal: the word for no finding. ignored: words that are not findings. In a cell without any other word every target
    is NaN.
    """
    codes, distinct = factorize(cells)
    listed = [{plain_cell(name) for name in names_in(cell)} - ignored - {""} for cell in distinct]
    labels = tuple(sorted(set().union(*listed) - {normal}))
    column = {label: position for position, label in enumerate(labels)}
    targets = np.zeros((len(listed), len(labels)), dtype=np.float32)
    for row, names in enumerate(listed):
        if not names:
            targets[row] = np.nan
        targets[row, [column[name] for name in names - {normal}]] = 1
    return labels, targets[codes]


def labels_from_columns(
    columns: Columns, names: Sequence[str], policy: LabelPolicy
) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    """Labels, targets float32 [N, labels], and rejected columns with the reason.

    A label's column has 1, 0, -1 (uncertain) or blank in each cell. A column with another value is rejected, and so is
    a blank column.
    """
    labels, targets, rejected = [], [], {}
    values = {"positive": 1.0, "negative": 0.0, "leave_out": np.nan}

    def value(cell: str) -> float:
        lower = cell.lower()
        if not cell:
            return values[policy.blank]
        if lower in ("true", "false"):
            return float(lower == "true")
        try:
            number = float(cell)
        except ValueError:
            return np.inf
        return {1.0: 1.0, 0.0: 0.0, -1.0: values[policy.uncertain]}.get(number, np.inf)

    for name in names:
        column = map_distinct(columns.text[name], value).astype(np.float32)
        if np.isinf(column).any():
            line = columns.lines[int(np.isinf(column).argmax())]
            rejected[name] = f"index line {line:,} has something else than 1, 0, -1 or nothing in it"
        elif not any(columns.text[name]):
            rejected[name] = "there is nothing in it"
        else:
            labels.append(name)
            targets.append(column)
    stacked = np.stack(targets, axis=1) if targets else np.zeros((len(columns.lines), 0), dtype=np.float32)
    return tuple(labels), stacked, rejected


def apply_no_finding(columns: Columns, labels: tuple[str, ...], targets: np.ndarray) -> np.ndarray:
    """bool [N]: images whose `No Finding` is 1. Sets the targets of their blank cells to 0, in place.

    Blank `Support Devices` cells keep their target, since `No Finding` does not cover devices (Irvin et al. 2019, arXiv
    1901.07031). Without a `No Finding` column, or if it is blank: the images on which every label is known to be
    absent. ColumnError if a cell is not 1, 0, -1 or blank.
    """
    if not any(columns.text.get(NO_FINDING, ())):
        absent: np.ndarray = (targets == 0).all(axis=1) & bool(labels)
        return absent
    (_, flags, rejected) = labels_from_columns(columns, [NO_FINDING], LabelPolicy())
    if rejected:
        raise ColumnError(
            f"column {NO_FINDING}: {rejected[NO_FINDING]}: correct it, or give the column another name, since it says "
            "which images are healthy"
        )
    no_finding: np.ndarray = (flags == 1).any(axis=1)
    for position, label in enumerate(labels):
        if label != SUPPORT_DEVICES:
            blank = np.array([not cell for cell in columns.text[label]])
            targets[no_finding & blank, position] = 0
    return no_finding
