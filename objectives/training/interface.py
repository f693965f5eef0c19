"""What a training is given and what it gives back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acuity.objectives.errors import InputError


@dataclass(frozen=True)
class Hyperparameters:
    """What decides a training, apart from data and seed."""

    architecture: str
    resolution: int  # pixels a side of the stored images
    batch_size: int
    learning_rate: float  # peak of the schedule at a batch of 128, scaled by sqrt(batch / 128)
    epochs: int
    network_input: int | None = None  # pixels a side that the network sees instead, images being enlarged to it
    pretrained: bool = False
    weights: Path | None = None
    precision: str = "fp32"  # or "bf16"
    weight_decay: float = 0.05
    augment: bool = True

    @property
    def side(self) -> int:
        """Pixels a side of what the network sees."""
        return self.network_input or self.resolution


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one resolution, what is known of one label, and which rows are for training and for validation."""

    images: NDArray[np.uint8]  # [N, R, R], may be memory-mapped
    targets: NDArray[np.float32]  # [N], 1 or 0; NaN (not known) in other rows only
    patients: NDArray[np.int64]  # [N]
    training: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Metrics of the validation images after the last epoch, and what it took to get there."""

    auc: float
    auc_se: float  # clustered by patient
    accuracy: float  # at the threshold that suits these same images best (Youden's)
    average_precision: float
    epochs: int  # finished, those of earlier processes included
    seconds: float  # likewise
    images_per_second: float  # of this process's training steps; 0 if none was left to take
    peak_memory_mib: float  # as watch_peak_memory defines it
    stopped: bool  # report asked to stop before the last epoch
    scores: NDArray[np.float64]  # [len(validation)] probabilities, which all metrics above are of
    resumed_epochs: int = 0  # taken over from a checkpoint


class Interrupted(Exception):  # noqa: N818  it ends a training, it is no error
    """should_stop() said so; the last finished epoch is checkpointed."""


class Diverged(Exception):  # noqa: N818  an outcome of the search
    """The loss or a prediction became NaN or infinite."""


def check_task(hyperparameters: Hyperparameters, data: LabelledImages) -> None:
    """Refuse what cannot be trained: too small a network input, too large a batch, one class alone."""
    resolution, batch_size = hyperparameters.resolution, hyperparameters.batch_size
    assert data.images.shape[1:] == (resolution, resolution)
    assert hyperparameters.precision in ("fp32", "bf16")
    if hyperparameters.side < resolution:
        raise InputError(
            f"network_input is {hyperparameters.side}, must be at least the resolution ({resolution}), or detail would "
            "be lost again: raise it or leave it out"
        )
    if not 2 <= batch_size <= len(data.training):
        raise InputError(
            f"batch size is {batch_size}, must be 2 (for batch normalisation) to {len(data.training)} (the training "
            "images): choose another or add images"
        )
    for part, rows in (("training", data.training), ("validation", data.validation)):
        targets = data.targets[rows]
        assert not np.isnan(targets).any(), f"{part} rows with an unknown target"
        positives = int(targets.sum())
        if not 0 < positives < len(rows):
            raise InputError(
                f"{positives} of {len(rows)} {part} images have the finding, both kinds are needed: "
                "choose another label or more patients"
            )
