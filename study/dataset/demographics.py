"""The image set's counts where its index lies on this host: a report and a model card tell who the patients were."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from acuity.objectives.errors import InputError
from acuity.objectives.split.file import PARTS
from acuity.study.config.paths import cache_folder
from acuity.study.config.schema import Experiment
from acuity.study.dataset.cohort import LabelCohort, count_cohort
from acuity.study.dataset.image_set import ImageSet, open_image_set
from acuity.study.dataset.selection import select_images
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered, check_same_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartOfCohort:
    """Everybody in one part, whatever the label."""

    images: int
    patients: int
    ages: tuple[float, float, float] | None
    """Years: median and quartiles over patients, by their first image; None where ages are not known."""
    female: float | None
    """Share of the patients whose sex is known; None where it is of none."""
    views: dict[str, float]
    """Share of images by view, the most frequent first."""


@dataclass(frozen=True)
class Cohort:
    """Counts by part, of all labels together and of each."""

    parts: dict[str, PartOfCohort]
    labels: tuple[LabelCohort, ...]
    left_out: dict[str, int]
    """Images of the index by the filter that they did not pass."""
    unreadable: int
    """Images that passed the filters and are in no part: on_bad_image = "drop"."""
    repeated: int
    """Images in no part because an earlier part has the same picture."""


def read_cohort_here(registered: Registered) -> Cohort | None:
    """Count the experiment's images; None, with a warning, where they are not at hand.

    Nothing is decoded for it: without the arrays which images repeat an earlier one is not known.
    """
    experiment = registered.experiment
    try:
        _check_decoded(experiment)
        image_set = open_image_set(experiment)
        check_same_images(registered, image_set.identity)
    except (InputError, UsageError, OSError) as error:
        logger.warning("the image set is not at hand, so its patients are not counted: %s", error)
        return None
    return Cohort(
        parts={part: _count(image_set, part) for part in PARTS if len(image_set.split.rows(part))},
        labels=count_cohort(image_set, experiment.labels, seeds=experiment.confirm.seeds),
        left_out={name: count for name, count in image_set.left_out.items() if count},
        unreadable=len(image_set.cache.bad),
        repeated=image_set.repeats.left_out,
    )


def _check_decoded(experiment: Experiment) -> None:
    if not cache_folder(experiment, select_images(experiment).index.files_sha256).is_dir():
        raise UsageError("its arrays are not on this host; `acuity prepare` makes them")


def _count(image_set: ImageSet, part: str) -> PartOfCohort:
    images = image_set.index.table.iloc[image_set.split.rows(part)]
    patients = images.drop_duplicates("patient")
    sexes = patients["sex"].astype(str).str.upper().str[:1]
    known = sexes.isin(["F", "M"])
    views = images["view"].astype(str)
    shares = views[views != ""].value_counts(normalize=True)
    return PartOfCohort(
        images=len(images),
        patients=len(patients),
        ages=_quartiles(patients["age"]),
        female=float((sexes[known] == "F").mean()) if known.any() else None,
        views={str(view): float(share) for view, share in shares.items()},
    )


def _quartiles(ages: "pd.Series[float]") -> tuple[float, float, float] | None:
    values = pd.to_numeric(ages, errors="coerce").to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    median, low, high = np.quantile(values, [0.5, 0.25, 0.75])
    return float(median), float(low), float(high)
