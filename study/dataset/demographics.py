"""Describe the patients of an experiment for its report and model cards: counts, age, sex, views."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from acuity.objectives.errors import InputError
from acuity.objectives.split.file import PARTS
from acuity.study.config.paths import cache_folder
from acuity.study.config.schema import Experiment
from acuity.study.dataset.cohort import LabelCohort, count_cohort
from acuity.study.dataset.design import planned_design
from acuity.study.dataset.image_set import ImageSet, open_image_set
from acuity.study.dataset.selection import select_images
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered, check_same_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartDemographics:
    """All patients and images of one part."""

    images: int
    patients: int
    ages: tuple[float, float, float] | None
    """Median, lower and upper quartile of the age in years at a patient's first image. None where no age is known."""
    female: float | None
    """Share of female patients among those of known sex. None where no sex is known."""
    views: dict[str, float]
    """Share of the images by view position, the most frequent first."""


@dataclass(frozen=True)
class Demographics:
    """Demographics by part, and counts of each label."""

    parts: dict[str, PartDemographics]
    """A part without images is absent."""
    labels: tuple[LabelCohort, ...]
    left_out: dict[str, int]
    """Number of images that each filter leaves out. A filter that leaves out none is absent."""
    unreadable: int
    """Images in no part because their files cannot be read (on_bad_image = "drop")."""
    small: int
    """Images in no part because they are smaller than the largest resolution (on_bad_image = "drop")."""
    repeated: int
    """Images in no part because an image of an earlier part shows the same picture."""
    published: bool
    """Whether the parts are those of a published split, from lists or from the index's column."""


def read_demographics(registered: Registered) -> Demographics | None:
    """Read the demographics from the index on this host. None, with a warning, where index or arrays are missing.

    No image is decoded: the arrays of an earlier launch show which images are repeated.
    """
    experiment = registered.experiment
    try:
        _check_decoded(experiment)
        image_set = open_image_set(experiment)
        check_same_images(registered, image_set.identity)
    except (InputError, UsageError, OSError) as error:
        logger.warning("the image set is not on this host, so its patients are not counted: %s", error)
        return None
    return Demographics(
        parts={part: _describe(image_set, part) for part in PARTS if len(image_set.split.rows(part))},
        labels=count_cohort(image_set, experiment.labels, planned_design(experiment, image_set)),
        left_out={name: count for name, count in image_set.left_out.items() if count},
        unreadable=len(image_set.cache.bad) - image_set.cache.small,
        small=image_set.cache.small,
        repeated=image_set.repeats.left_out,
        published=bool(image_set.selection.published),
    )


def _check_decoded(experiment: Experiment) -> None:
    if not cache_folder(experiment, select_images(experiment).index.files_sha256).is_dir():
        raise UsageError(
            f"the decoded images of {experiment.name} are not on this host; run `acuity prepare` on its file here"
        )


def _describe(image_set: ImageSet, part: str) -> PartDemographics:
    images = image_set.index.table.iloc[image_set.split.rows(part)]
    patients = images.drop_duplicates("patient")
    sexes = patients["sex"].astype(str).str.upper().str[:1]
    known = sexes.isin(["F", "M"])
    views = images["view"].astype(str)
    shares = views[views != ""].value_counts(normalize=True)
    return PartDemographics(
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
