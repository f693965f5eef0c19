"""Forecast of the disk space that an experiment needs."""

import shutil
from dataclasses import dataclass

from objectives.image_cache import cache_bytes
from objectives.network import count_parameters
from study.config_schema import Experiment
from study.image_set import ImageSet
from study.units import format_bytes

_CHECKPOINT_BYTES_PER_PARAMETER = 12  # the network and AdamW's two moments, in float32


@dataclass(frozen=True)
class Disk:
    """Upper bound of an experiment's disk space, in bytes."""

    arrays: int
    checkpoints: int
    free: int
    """Free space in the arrays' folder."""

    def line(self) -> str:
        arrays, checkpoints, free = map(format_bytes, (self.arrays, self.checkpoints, self.free))
        return f"disk: {arrays} of decoded images, at most {checkpoints} of checkpoints; {free} free"


def predict_disk(experiment: Experiment, image_set: ImageSet, *, workers: int) -> Disk:
    """Add up the decoded arrays, one checkpoint per label and resolution, and one checkpoint per worker."""
    training, search = experiment.training, experiment.search
    side = training.network_input or max(search.resolutions)
    largest = max(count_parameters(architecture, input_size=side) for architecture in search.architectures)
    kept = len(experiment.labels) * len(search.resolutions) + workers
    return Disk(
        arrays=cache_bytes(image_set.index, search.resolutions),
        checkpoints=kept * largest * _CHECKPOINT_BYTES_PER_PARAMETER,
        free=shutil.disk_usage(image_set.cache.folder).free,
    )
