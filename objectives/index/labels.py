"""From what is in the cells to labels and targets: lists of findings, or a column for each."""

from collections.abc import Callable, Sequence

import numpy as np

from acuity.objectives.index.cells import Columns, Reading, by_value, factorize

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"
_NOTHING = ("", "nan", "na", "n/a", "none", "null", "<na>")


def listed_findings(
    cells: Sequence[str], names_in: Callable[[str], set[str]], *, normal: str, silent: frozenset[str] = frozenset()
) -> tuple[tuple[str, ...], np.ndarray]:
    """Labels and targets of cells that list findings: what a cell does not name is absent.

    normal: the word for no finding. silent: words that say nothing about findings; a cell without any other word leaves
    every label unknown.
    """
    codes, distinct = factorize(cells)
    told = [names_in(cell) - silent - {""} for cell in distinct]
    labels = tuple(sorted(set().union(*told) - {normal}))
    column = {label: position for position, label in enumerate(labels)}
    targets = np.zeros((len(told), len(labels)), dtype=np.float32)
    for row, names in enumerate(told):
        if not names:
            targets[row] = np.nan
        targets[row, [column[name] for name in names - {normal}]] = 1
    return labels, targets[codes]


def label_columns(
    columns: Columns, names: Sequence[str], reading: Reading
) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    """Labels, targets and what was set aside, of columns with 1, 0, -1 (uncertain) or nothing in each cell.

    A column with anything else in it is no label; so is one without any 1 or 0.
    """
    labels, targets, set_aside = [], [], {}
    values = {"positive": 1.0, "negative": 0.0, "leave_out": np.nan}

    def value(cell: str) -> float:
        lower = cell.lower()
        if _is_blank(cell):
            return values[reading.blank]
        if lower in ("true", "false"):
            return float(lower == "true")
        try:
            number = float(cell)
        except ValueError:
            return np.inf
        return {1.0: 1.0, 0.0: 0.0, -1.0: values[reading.uncertain]}.get(number, np.inf)

    for name in names:
        column = by_value(columns.text[name], value).astype(np.float32)
        if np.isinf(column).any():
            line = columns.lines[int(np.isinf(column).argmax())]
            set_aside[name] = f"index line {line:,} has something else than 1, 0, -1 or nothing in it"
        elif all(map(_is_blank, set(columns.text[name]))):
            set_aside[name] = "there is nothing in it"
        else:
            labels.append(name)
            targets.append(column)
    stacked = np.stack(targets, axis=1) if targets else np.zeros((len(columns.lines), 0), dtype=np.float32)
    return tuple(labels), stacked, set_aside


def apply_no_finding(columns: Columns, labels: tuple[str, ...], targets: np.ndarray) -> np.ndarray:
    """bool [N]: the images whose `No Finding` is 1, whose blank labels are set to 0 in targets: that is what it says.

    It says nothing of support devices (Irvin et al. 2019, arXiv 1901.07031). Without such a column: the images of which
    every label is known to be absent.
    """
    if NO_FINDING not in columns.text:
        absent: np.ndarray = (targets == 0).all(axis=1) & bool(labels)
        return absent
    (_, flags, _) = label_columns(columns, [NO_FINDING], Reading())
    healthy: np.ndarray = (flags == 1).any(axis=1)
    for position, label in enumerate(labels):
        if label != SUPPORT_DEVICES:
            blank = by_value(columns.text[label], _is_blank).astype(bool)
            targets[healthy & blank, position] = 0
    return healthy


def _is_blank(cell: str) -> bool:
    return cell.lower() in _NOTHING
