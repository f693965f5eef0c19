"""Select the images of an index that an experiment uses. Filters run after the split and do not change it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex, take_rows
from acuity.objectives.tables.names import suggest_name

NoFinding = Literal["keep", "leave_out", "only_negatives"]


@dataclass(frozen=True)
class Filters:
    """Conditions that an image must meet, in the order in which they are checked."""

    views: tuple[str, ...] | None = None
    """View positions as the index writes them. None: any."""
    ages: tuple[float, float] | None = None
    """Years, both ends included. Excludes images of unknown age."""
    no_finding: NoFinding = "keep"
    """Images known to have no finding: keep them, leave them out, or use no other image as a negative."""
    one_image_per_patient: bool = False
    """Keep the first image of a patient that passes the other filters, in the index's order."""


@dataclass(frozen=True, eq=False)
class FilteredIndex:
    """The images of an index that pass the filters."""

    index: ImageIndex
    rows: np.ndarray
    """int64 [M]: rows of the whole index."""
    left_out: Mapping[str, int]
    """Number of images by the first filter that they fail. Filters that every image passes are absent."""


def apply_filters(index: ImageIndex, filters: Filters) -> FilteredIndex:
    """Leave out images that fail a filter. `only_negatives` also unsets the negatives of images with another finding.

    InputError for a view that the index does not have, and if no image remains.
    """
    table = index.table
    keep = np.ones(len(table), dtype=bool)
    left_out: dict[str, int] = {}

    def drop(reason: str, failed: np.ndarray) -> None:
        count = int((keep & failed).sum())
        if count:
            left_out[reason] = count
        keep[failed] = False

    if filters.views is not None:
        _check_views(index, filters.views)
        drop("other view", ~table["view"].isin(filters.views).to_numpy(bool))
    if filters.ages is not None:
        age = table["age"].to_numpy(np.float64)
        drop("age not known", np.isnan(age))
        drop("other age", ~((age >= filters.ages[0]) & (age <= filters.ages[1])))
    no_finding = table["no_finding"].to_numpy(bool)
    if filters.no_finding == "leave_out":
        drop("no finding", no_finding)
    if filters.one_image_per_patient:
        drop("further image of a patient", table["patient"].where(keep).duplicated().to_numpy(bool))
    if not keep.any():
        counts = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items())
        raise InputError(f"{index.path}: [data]'s filters leave no image ({counts}); widen them")
    rows = np.flatnonzero(keep)
    if len(rows) < len(table):
        index = take_rows(index, rows)
    if filters.no_finding == "only_negatives":
        other_finding = ~no_finding[rows, np.newaxis]
        targets = np.where((index.targets == 0) & other_finding, np.float32(np.nan), index.targets)
        index = replace(index, targets=targets)
    return FilteredIndex(index, rows, left_out)


def _check_views(index: ImageIndex, views: tuple[str, ...]) -> None:
    known = sorted(set(index.table["view"]) - {""})
    for view in views:
        if view not in known:
            raise InputError(
                f'[data] views has "{view}", which no image of {index.path} has. {suggest_name(view, known)}'
            )
