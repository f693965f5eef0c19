"""`acuity prepare`: check an experiment and count its images before any network is trained."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acuity.objectives.images.cache import cache_bytes
from acuity.objectives.images.faults import BadImage
from acuity.objectives.split.duplicates import DuplicateCounts
from acuity.storage.embedded.folder import default_folder
from acuity.storage.errors import StorageError
from acuity.study.config.caveats import caveats, with_found_format
from acuity.study.config.rules import check_fixed_batch
from acuity.study.config.schema import Experiment
from acuity.study.dataset.cohort import LabelCohort, count_cohort
from acuity.study.dataset.contact_sheet import check_sheet_name, write_contact_sheet
from acuity.study.dataset.design import Design, choose_design
from acuity.study.dataset.image_set import ImageSet, fewest_training_images, open_image_set, training_images
from acuity.study.search.networks import check_networks_once

if TYPE_CHECKING:
    from acuity.study.results.forecast import CostForecast

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Preparation:
    """Counts of an experiment's images, the place of their arrays, and the power of the test patients."""

    experiment: str
    images: int
    patients: int
    cohort: tuple[LabelCohort, ...]
    design: Design
    """Of the confirmation. The power estimates assume its test patients and its number of networks."""
    left_out: dict[str, int]
    """Number of images that each filter leaves out."""
    repeats: DuplicateCounts
    bad_images: tuple[BadImage, ...]
    """Images left out by on_bad_image = "drop"."""
    cache: Path
    """Folder of the arrays."""
    cache_bytes: int
    free_bytes: int
    """Free disk space in the folder of the arrays."""
    cost: "CostForecast"
    """Rough before the trials of a launch: from the speed of this host."""
    suspicions: tuple[str, ...]
    """Facts that may be a mistake in the image set, with counts and examples."""
    warnings: tuple[str, ...]
    """Warnings that every result carries. Empty for a split by patient with test patients."""

    def __repr__(self) -> str:
        return f"Preparation({self.experiment!r}, images={self.images}, patients={self.patients})"

    def to_json(self) -> dict[str, Any]:
        """The JSON of `acuity prepare --json`."""
        table = asdict(self) | {"cache": str(self.cache)}
        for label, known in zip(table["cohort"], self.cohort, strict=True):
            for part, counts in known.parts.items():
                label["parts"][part]["prevalence"] = counts.prevalence
        return table


def prepare(
    experiment: Experiment,
    *,
    storage_url: str | None = None,
    look: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Preparation:
    """Check index, images, labels, disk and networks, write the split, and build the cache.

    A second call finds the split and the cache complete. InputError names the mistake. look: the file of a contact
    sheet to write. progress: called with (images done, images in all).
    """
    if look is not None:
        check_sheet_name(look)
    image_set = prepare_images(experiment, check_files=True, progress=progress)
    if look is not None:
        write_contact_sheet(image_set, experiment.labels, experiment.search.resolutions, look)
    folder = image_set.cache.folder
    design = choose_design(experiment, image_set)
    return Preparation(
        experiment=experiment.name,
        images=len(image_set.index.table),
        patients=int(image_set.index.table["patient"].nunique()),
        cohort=count_cohort(image_set, experiment.labels, design),
        design=design,
        left_out=dict(image_set.left_out),
        repeats=image_set.repeats,
        bad_images=tuple(image_set.cache.bad),
        cache=folder,
        cache_bytes=cache_bytes(image_set.index, experiment.search.resolutions),
        free_bytes=shutil.disk_usage(folder).free,
        cost=_predict_cost(experiment, storage_url, image_set),
        suspicions=image_set.suspicions,
        warnings=caveats(with_found_format(experiment, image_set.index.format_name)),
    )


def prepare_images(
    experiment: Experiment, *, check_files: bool = False, progress: Callable[[int, int], None] | None = None
) -> ImageSet:
    """Check the networks, open the image set, and check a fixed batch size against its images.

    The networks come first, since decoding a large image set takes minutes. check_files and progress: as in
    `open_image_set`. InputError or UsageError names the mistake.
    """
    check_networks_once(experiment)
    image_set = open_image_set(experiment, check_files=check_files, progress=progress)
    check_fixed_batch(experiment, fewest_training_images(image_set, experiment.labels))
    return image_set


def estimate_trials(experiment: Experiment, image_set: ImageSet) -> dict[int, float]:
    """Rough seconds of a trial on this host by resolution. The first call measures the speed for a second."""
    from acuity.study.results.pace import rough_trial_seconds

    return rough_trial_seconds(
        experiment,
        training_images=training_images(image_set, experiment.labels),
        validation_images=len(image_set.split.rows("validation")),
    )


def _predict_cost(experiment: Experiment, storage_url: str | None, image_set: ImageSet) -> "CostForecast":
    """The cost by the trials of an earlier launch, else a rough one. The imports take longer than a second call."""
    from acuity.study.results.forecast import forecast_cost

    rough = partial(estimate_trials, experiment, image_set)
    if not (storage_url or os.environ.get("ACUITY_STORAGE") or default_folder().exists()):
        return forecast_cost(None, experiment, rough)
    from acuity.storage.database import open_storage

    try:
        with open_storage(storage_url) as database:
            return forecast_cost(database, experiment, rough)
    except StorageError as error:
        logger.warning("the trials that have run are not known: %s", error)
        return forecast_cost(None, experiment, rough)
