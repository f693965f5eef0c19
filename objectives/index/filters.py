"""Which images of an index an experiment uses. The split is made before, and knows nothing of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.formats import nearest
from acuity.objectives.index.image_index import ImageIndex, take_rows

NoFinding = Literal["keep", "leave_out", "only_negatives"]


@dataclass(frozen=True)
class Filters:
    """What an image must be, in the order in which it is looked at."""

    views: tuple[str, ...] | None = None
    """As the index writes them; None: any."""
    ages: tuple[float, float] | None = None
    """Years, both ends included; an image of unknown age is then left out."""
    no_finding: NoFinding = "keep"
    """Images known to show nothing: negatives like others, none at all, or the only negatives that there are."""
    one_image_per_patient: bool = False
    """The first of those that are left, in the index's order."""


@dataclass(frozen=True, eq=False)
class Filtered:
    """What is left of an index."""

    index: ImageIndex
    rows: np.ndarray
    """int64: positions in the whole index."""
    left_out: Mapping[str, int]
    """Images by the first reason that they were left out for; reasons that met none are not named."""


def apply_filters(index: ImageIndex, filters: Filters) -> Filtered:
    """Leave out images, and with `only_negatives` those labels of an image that are negative beside another finding.

    InputError for a view that the index does not have, and if nothing is left.
    """
    table = index.table
    keep = np.ones(len(table), dtype=bool)
    left_out: dict[str, int] = {}

    def drop(reason: str, faulty: np.ndarray) -> None:
        count = int((keep & faulty).sum())
        if count:
            left_out[reason] = count
        keep[faulty] = False

    if filters.views is not None:
        _check_views(index, filters.views)
        drop("other view", ~table["view"].isin(filters.views).to_numpy(bool))
    if filters.ages is not None:
        age = table["age"].to_numpy(np.float64)
        drop("age not known", np.isnan(age))
        drop("other age", ~((age >= filters.ages[0]) & (age <= filters.ages[1])))
    healthy = table["no_finding"].to_numpy(bool)
    if filters.no_finding == "leave_out":
        drop("no finding", healthy)
    if filters.one_image_per_patient:
        drop("further image of a patient", table["patient"].where(keep).duplicated().to_numpy(bool))
    if not keep.any():
        told = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items())
        raise InputError(f"{index.path}: [data]'s filters leave no image ({told}); widen them")
    rows = np.flatnonzero(keep)
    if len(rows) < len(table):
        index = take_rows(index, rows)
    if filters.no_finding == "only_negatives":
        ill = ~healthy[rows, np.newaxis]
        index = replace(index, targets=np.where((index.targets == 0) & ill, np.float32(np.nan), index.targets))
    return Filtered(index, rows, left_out)


def _check_views(index: ImageIndex, views: tuple[str, ...]) -> None:
    there = sorted(set(index.table["view"]) - {""})
    for view in views:
        if view not in there:
            raise InputError(f'[data] views has "{view}", which no image of {index.path} has. {nearest(view, there)}')
