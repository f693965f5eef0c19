"""What a launch will take of the disk."""

import shutil
from dataclasses import dataclass

from objectives.image_cache import cache_bytes
from objectives.network import count_parameters
from study.experiment import Experiment
from study.image_set import ImageSet
from study.terminal import size

_CHECKPOINT_BYTES_PER_PARAMETER = 12  # the network and AdamW's two moments, in float32


@dataclass(frozen=True)
class Disk:
    """Bytes that an experiment takes at most."""

    arrays: int
    checkpoints: int
    free: int
    """Where the arrays lie."""

    def line(self) -> str:
        return (
            f"disk: {size(self.arrays)} of decoded images, at most {size(self.checkpoints)} of checkpoints; "
            f"{size(self.free)} free"
        )


def predict_disk(experiment: Experiment, image_set: ImageSet, *, workers: int) -> Disk:
    """Arrays as they are, and checkpoints of each label's best trial a resolution and of each worker's own."""
    training, search = experiment.training, experiment.search
    side = training.network_input or max(search.resolutions)
    largest = max(count_parameters(architecture, input_size=side) for architecture in search.architectures)
    kept = len(experiment.labels) * len(search.resolutions) + workers
    return Disk(
        arrays=cache_bytes(image_set.index, search.resolutions),
        checkpoints=kept * largest * _CHECKPOINT_BYTES_PER_PARAMETER,
        free=shutil.disk_usage(image_set.cache.folder).free,
    )
