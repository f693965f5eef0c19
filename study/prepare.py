"""`acuity prepare`: everything that can go wrong or be known before a network is trained."""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acuity.objectives.images.cache import cache_bytes
from acuity.objectives.images.faults import BadImage
from acuity.objectives.split.duplicates import RepeatCounts
from acuity.storage.embedded.folder import default_folder
from acuity.storage.errors import StorageError
from acuity.study.config.schema import Experiment, caveats
from acuity.study.dataset.cohort import LabelCohort, count_cohort
from acuity.study.dataset.image_set import open_image_set

if TYPE_CHECKING:
    from acuity.study.results.forecast import Cost

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What an experiment's images are, where their arrays lie, and what its test patients can decide."""

    experiment: str
    images: int
    patients: int
    cohort: tuple[LabelCohort, ...]
    seeds: int
    """That a confirmation is to train of each finalist: the plans are for so many."""
    left_out: dict[str, int]
    """Images of the index by the filter that they did not pass."""
    repeats: RepeatCounts
    bad_images: tuple[BadImage, ...]
    """Left out since on_bad_image is "drop"."""
    cache: Path
    cache_bytes: int
    free_bytes: int
    cost: "Cost | None"
    """None where no storage is named and no embedded server has been used yet."""
    warnings: tuple[str, ...]
    """What every number of this experiment will have beside it; empty for a split by patient with a test part."""

    def to_json(self) -> dict[str, Any]:
        table = asdict(self) | {"cache": str(self.cache)}
        for label, known in zip(table["cohort"], self.cohort, strict=True):
            for part, counts in known.parts.items():
                label["parts"][part]["prevalence"] = counts.prevalence
        return table


def prepare(
    experiment: Experiment, *, storage_url: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Preparation:
    """Check index, images, labels, disk and networks, write the split, build the cache.

    A second call finds all of it done. InputError names what is wrong. progress: called with (images done, images in
    all).
    """
    image_set = open_image_set(experiment, progress=progress)
    folder = image_set.cache.folder
    check_networks_once(experiment, folder)
    return Preparation(
        experiment=experiment.name,
        images=len(image_set.index.table),
        patients=int(image_set.index.table["patient"].nunique()),
        cohort=count_cohort(image_set, experiment.labels, seeds=experiment.confirm.seeds),
        seeds=experiment.confirm.seeds,
        left_out=dict(image_set.left_out),
        repeats=image_set.repeats,
        bad_images=tuple(image_set.cache.bad),
        cache=folder,
        cache_bytes=cache_bytes(image_set.index, experiment.search.resolutions),
        free_bytes=shutil.disk_usage(folder).free,
        cost=_cost(experiment, storage_url),
        warnings=caveats(experiment),
    )


def _cost(experiment: Experiment, storage_url: str | None) -> "Cost | None":
    """From the trials of an earlier launch. Imported here, since a second run has to answer at once."""
    if not (storage_url or os.environ.get("ACUITY_STORAGE") or default_folder().exists()):
        return None
    from acuity.storage.database import open_storage
    from acuity.study.results.forecast import predict_cost

    try:
        with open_storage(storage_url) as database:
            return predict_cost(database, experiment)
    except StorageError as error:
        logger.warning("the search's hours are not known: %s", error)
        return None


def check_networks(experiment: Experiment) -> None:
    """InputError where an architecture is unknown, takes no images of a resolution, or has no weights to be had.

    Pretrained weights are fetched, once, into the hub's own cache: compute nodes are often offline.
    """
    from acuity.objectives.training.network import check_architecture, check_input_size, make_network

    training = experiment.training
    sides = _input_sizes(experiment)
    for architecture in experiment.search.architectures:
        check_architecture(architecture)
        if training.pretrained or training.weights:
            make_network(architecture, input_size=sides[0], pretrained=training.pretrained, weights=training.weights)
    for architecture, side in itertools.product(experiment.search.architectures, sides):
        check_input_size(architecture, side)


def check_networks_once(experiment: Experiment, folder: Path) -> None:
    """The same, remembered by a file in folder: importing torch alone takes longer than looking there."""
    known = folder / f"networks-{_digest(experiment)}.checked"
    if known.exists():
        return
    check_networks(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    known.touch()


def _input_sizes(experiment: Experiment) -> list[int]:
    enlarged = experiment.training.network_input
    return [enlarged] if enlarged else sorted(experiment.search.resolutions)


def _digest(experiment: Experiment) -> str:
    training = experiment.training
    weights = training.weights and [str(training.weights), training.weights.exists()]
    asked = [experiment.search.architectures, _input_sizes(experiment), training.pretrained, weights]
    return hashlib.sha256(json.dumps([*asked, version("timm"), version("torch")]).encode()).hexdigest()[:16]
