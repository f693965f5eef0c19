"""Hyperparameters, data, result and exceptions of a training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acuity.objectives.errors import InputError


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of a training; together with data and seed they determine its result."""

    architecture: str
    """A network of timm or of the user, as `make_network` takes it."""
    resolution: int
    """Pixels a side of the stored images."""
    batch_size: int
    learning_rate: float
    """Peak of the schedule at a batch size of 128; scaled by sqrt(batch_size / 128)."""
    epochs: int
    network_input: int | None = None
    """Pixels a side to which images are enlarged before the network; None leaves them at their resolution."""
    pretrained: bool = False
    """Start from timm's pretrained weights."""
    weights: Path | None = None
    """File or folder of weights to start from."""
    precision: str = "fp32"
    """"fp32"; "tf32" (fp32 with 10 bits of fraction in a GPU's products, where the GPU can); "bf16" (autocast)."""
    weight_decay: float = 0.05
    augment: bool = True
    augmentation: str | None = None
    """The user's function "module:function" in place of the built-in augmentation; None for the latter."""
    loss: str | None = None
    """The user's function "module:function" in place of the weighted cross entropy; None for the latter."""
    train: str | None = None
    """The user's function "module:function" in place of all training steps; None for the built-in ones."""

    @property
    def side(self) -> int:
        """Pixels a side of the network's input."""
        return self.network_input or self.resolution


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one resolution, targets of one label, and the rows for training and validation."""

    images: NDArray[np.uint8]
    """[N, R, R], may be memory-mapped."""
    targets: NDArray[np.float32]
    """[N], 1 or 0; NaN (unknown) only in rows for neither training nor validation."""
    patients: NDArray[np.int64]
    """[N], a number for each patient."""
    training: NDArray[np.int64]
    """Rows for training."""
    validation: NDArray[np.int64]
    """Rows for validation."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Metrics of the validation images after the last epoch, with the time and memory of the training."""

    auc: float
    auc_se: float
    """Standard error of the AUC, clustered by patient."""
    accuracy: float
    """At Youden's threshold of the same images."""
    average_precision: float
    epochs: int
    """Finished epochs, including those of earlier processes."""
    seconds: float
    """Training time, including that of earlier processes."""
    images_per_second: float
    """Of this process's training steps; 0 if there were none."""
    peak_memory_mib: float
    """As `watch_peak_memory` defines it."""
    stopped: bool
    """Whether report() ended the training before the last epoch."""
    scores: NDArray[np.float64]
    """[len(validation)] probabilities; all metrics above are computed from them."""
    resumed_epochs: int = 0
    """Epochs restored from a checkpoint."""


class Interrupted(Exception):  # noqa: N818  a request, not an error
    """should_stop() returned True; the last finished epoch is in the checkpoint."""


class Diverged(Exception):  # noqa: N818  an outcome of the search
    """The loss or a prediction became NaN or infinite."""


def check_trainable(hyperparameters: Hyperparameters, data: LabelledImages) -> None:
    """InputError if the network input is too small, the batch size too large, or one class is missing."""
    resolution, batch_size = hyperparameters.resolution, hyperparameters.batch_size
    assert data.images.shape[1:] == (resolution, resolution)
    assert hyperparameters.precision in ("fp32", "tf32", "bf16")
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
