"""Train one network for one label: epochs of AdamW on a one-cycle schedule, validated and checkpointed after each."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm.optim
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from objectives.augmentation import augment, draw_augmentation, enlarge
from objectives.checkpoint import Checkpoint, pack, unpack
from objectives.errors import InputError
from objectives.image_feed import Feed, open_feed
from objectives.metrics import accuracy, auc, auc_standard_error, average_precision, youden_threshold
from objectives.network import make_network, normalisation
from objectives.peak_memory import watch_peak_memory

REFERENCE_BATCH = 128  # at which learning_rate is stated; AdamW's optimum grows with the square root of the batch
# A positive of a rare label would otherwise outweigh whole batches of negatives, and one image would steer each step.
MAX_POSITIVE_WEIGHT = 20.0


@dataclass(frozen=True)
class Hyperparameters:
    """What decides a training, apart from data and seed."""

    architecture: str
    resolution: int  # pixels a side of the stored images
    batch_size: int
    learning_rate: float  # peak of the schedule at REFERENCE_BATCH
    epochs: int
    network_input: int | None = None  # pixels a side that images are enlarged to for the network; None: as stored
    pretrained: bool = False
    weights: Path | None = None
    precision: str = "fp32"  # or "bf16", autocast
    weight_decay: float = 0.05
    augment: bool = True


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one resolution, what is known of one label, and which rows are for training and validation."""

    images: NDArray[np.uint8]  # [N, R, R], may be memory-mapped
    targets: NDArray[np.float32]  # [N], 1 or 0; NaN (not known) only outside training and validation
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
    images_per_second: float  # training steps of this process; 0 if none was left to do
    peak_memory_mib: float  # as watch_peak_memory says
    stopped: bool  # report asked to stop before the last epoch
    scores: NDArray[np.float32]  # [len(validation)] probabilities


class Interrupted(Exception):
    """should_stop() said so; the last finished epoch is checkpointed."""


class Diverged(Exception):
    """The loss or a prediction became NaN or infinite."""


@dataclass(frozen=True, eq=False)
class _Learner:
    """A network on its device with what trains it."""

    network: torch.nn.Module
    optimiser: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    side: int
    mean: float
    std: float
    precision: str

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [B] from images in [0, 1] of the network's own side."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits: torch.Tensor = self.network((images - self.mean) / self.std)
        return logits.float().flatten()


def never() -> bool:
    """No reason to stop."""
    return False


def train(
    hyperparameters: Hyperparameters,
    data: LabelledImages,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[int, float], bool],
    should_stop: Callable[[], bool] = never,
    load_checkpoint: Callable[[], bytes | None] | None = None,
    save_checkpoint: Callable[[bytes], None] | None = None,
    workers: int = 1,
) -> Outcome:
    """Train and validate; report(epoch, validation AUC) after each epoch, counted from 1, ends it by returning True.

    A training resumed from its checkpoint reports its finished epochs again first, and heeds the answer to the last of
    them alone (the others are paid for). On a CPU with as many threads it ends bit for bit as if never interrupted.
    workers: how many share the device. Raises Interrupted within a batch of should_stop(), Diverged, InputError.
    """
    started = time.perf_counter()
    peak_memory_mib = watch_peak_memory(device)
    batches = _check(hyperparameters, data)
    learner, checkpoint = _start_or_resume(
        hyperparameters, data, batches=batches, seed=seed, device=device, load_checkpoint=load_checkpoint
    )
    aucs = checkpoint.aucs if checkpoint else []
    seconds_before = checkpoint.seconds if checkpoint else 0.0
    training_feed, validation_feed = (
        open_feed(data.images, rows, device=device, workers=workers) for rows in (data.training, data.validation)
    )
    training_targets = torch.from_numpy(data.targets[data.training]).to(device)
    known = data.targets[data.validation]

    answers = [report(epoch, area) for epoch, area in enumerate(aucs, start=1)]
    stopped = bool(answers and answers[-1] and len(aucs) < hyperparameters.epochs)
    training_seconds, scores = 0.0, None
    while len(aucs) < hyperparameters.epochs and not stopped:
        epoch = len(aucs) + 1
        ...
