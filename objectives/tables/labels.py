"""Labels and targets of an index: from cells that list findings, or from one column per label."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from acuity.objectives.tables.cells import ColumnError, Columns, LabelPolicy, factorize, map_distinct, plain_cell

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"
TARGETS = {"positive": 1.0, "negative": 0.0, "leave_out": np.nan}
"""Word of a `LabelPolicy` -> target."""


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
    columns: Columns, named: Mapping[str, str], policy: LabelPolicy, values: Mapping[str, int] = MappingProxyType({})
) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    """Labels, targets float32 [N, labels], and rejected labels with the reason.

    named: label -> column. A column has 1, 0, -1 (uncertain) or blank in each cell, or a word of values. A column with
    another value is rejected, and so is a blank column.
    """
    labels, targets, rejected = [], [], {}
    blank = TARGETS[policy.blank]
    numbers = {1.0: 1.0, 0.0: 0.0, -1.0: TARGETS[policy.uncertain]}

    def value(cell: str) -> float:
        lower = cell.lower()
        if not cell:
            return blank
        if values and (word := values.get(cell, values.get("*"))) is not None:
            return numbers[word]
        if lower in ("true", "false"):
            return float(lower == "true")
        try:
            return numbers.get(float(cell), np.inf)
        except ValueError:
            return np.inf

    for label, name in named.items():
        column = map_distinct(columns.text[name], value).astype(np.float32)
        if np.isinf(column).any():
            line = columns.lines[int(np.isinf(column).argmax())]
            words = " or a word of [data] columns.values" if values else ""
            rejected[label] = f"index line {line:,} has something else than 1, 0, -1 or nothing{words} in it"
        elif not any(columns.text[name]):
            rejected[label] = "there is nothing in it"
        else:
            labels.append(label)
            targets.append(column)
    stacked = np.stack(targets, axis=1) if targets else np.zeros((len(columns.lines), 0), dtype=np.float32)
    return tuple(labels), stacked, rejected


def apply_no_finding(
    columns: Columns,
    named: Mapping[str, str],
    labels: tuple[str, ...],
    targets: np.ndarray,
    *,
    name: str = NO_FINDING,
    values: Mapping[str, int] = MappingProxyType({}),
) -> np.ndarray:
    """float32 [N]: 1 for images whose `No Finding` is 1, 0 for others. Sets the targets of their blank cells to 0.

    named: label -> column. name: the column that is 1 for healthy images. Blank `Support Devices` cells keep their
    target, since `No Finding` does not cover devices (Irvin et al. 2019, arXiv 1901.07031). Without the column, or if
    it is blank: the images on which every label is known to be absent. ColumnError if a cell is not 1, 0, -1, blank or
    a word of values.
    """
    if not any(columns.text.get(name, ())):
        absent: np.ndarray = ((targets == 0).all(axis=1) & bool(labels)).astype(np.float32)
        return absent
    (_, flags, rejected) = labels_from_columns(columns, {name: name}, LabelPolicy(), values)
    if rejected:
        raise ColumnError(
            f"column {name}: {rejected[name]}: correct it, or give the column another name, since it says which images "
            "are healthy"
        )
    no_finding: np.ndarray = (flags == 1).any(axis=1)
    for position, label in enumerate(labels):
        if label != SUPPORT_DEVICES:
            blank = np.array([not cell for cell in columns.text[named[label]]])
            targets[no_finding & blank, position] = 0
    return no_finding.astype(np.float32)
