"""Train one network for one label: epochs of AdamW on a one-cycle schedule, validated and checkpointed after each."""

import hashlib
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
_PREDICTED_PIXELS = 2**21  # of a batch without gradients: 512 images of 64 px, 20 of 320 px


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
    identity = _identity(hyperparameters, data, seed)
    learner = _start(hyperparameters, batches=batches, seed=seed, device=device)
    checkpoint = _resume(learner, load_checkpoint, identity=identity)
    aucs = list(checkpoint.aucs) if checkpoint else []
    seconds_before = checkpoint.seconds if checkpoint else 0.0
    training_feed, validation_feed = (
        open_feed(data.images, rows, device=device, workers=workers) for rows in (data.training, data.validation)
    )
    targets = torch.from_numpy(data.targets[data.training]).to(device)
    known = data.targets[data.validation]

    answers = [report(epoch, area) for epoch, area in enumerate(aucs, start=1)]
    stopped = bool(answers and answers[-1] and len(aucs) < hyperparameters.epochs)
    epochs_here, training_seconds = 0, 0.0
    scores: NDArray[np.float32] | None = None
    while len(aucs) < hyperparameters.epochs and not stopped:
        epoch = len(aucs) + 1
        epoch_started = time.perf_counter()
        _train_one_epoch(
            learner, training_feed, targets, hyperparameters, seed=seed, epoch=epoch, should_stop=should_stop
        )
        training_seconds += time.perf_counter() - epoch_started
        epochs_here += 1
        scores = _predict(learner, validation_feed, len(known), should_stop=should_stop)
        if not np.isfinite(scores).all():
            raise Diverged(f"a prediction became NaN or infinite in epoch {epoch}: lower the learning rate")
        aucs.append(auc(known, scores))
        if save_checkpoint is not None:
            seconds = seconds_before + time.perf_counter() - started
            save_checkpoint(pack(_checkpoint(learner, identity=identity, aucs=aucs, seconds=seconds)))
        stopped = report(epoch, aucs[-1]) and epoch < hyperparameters.epochs
    if scores is None:  # all epochs had been trained before
        scores = _predict(learner, validation_feed, len(known), should_stop=should_stop)
    trained = epochs_here * batches * hyperparameters.batch_size
    return Outcome(
        auc=aucs[-1],
        auc_se=auc_standard_error(known, scores, data.patients[data.validation]),
        accuracy=accuracy(known, scores, threshold=youden_threshold(known, scores)),
        average_precision=average_precision(known, scores),
        epochs=len(aucs),
        seconds=seconds_before + time.perf_counter() - started,
        images_per_second=trained / training_seconds if trained else 0.0,
        peak_memory_mib=peak_memory_mib(),
        stopped=stopped,
        scores=scores,
    )


def _check(hyperparameters: Hyperparameters, data: LabelledImages) -> int:
    """The optimiser steps of an epoch: incomplete batches are dropped."""
    assert np.isfinite(data.targets[data.training]).all(), "training rows have known targets"
    assert np.isfinite(data.targets[data.validation]).all(), "validation rows have known targets"
    assert data.images.shape[1:] == (hyperparameters.resolution, hyperparameters.resolution)
    batches = len(data.training) // hyperparameters.batch_size
    if batches == 0:
        raise InputError(
            f"{len(data.training)} training images do not fill one batch of {hyperparameters.batch_size}: "
            "lower the batch size or add images"
        )
    return batches


def _identity(hyperparameters: Hyperparameters, data: LabelledImages, seed: int) -> str:
    """What a checkpoint must have in common with the training that it continues."""
    facts = repr((hyperparameters, seed, len(data.training), float(data.targets[data.training].sum())))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _start(hyperparameters: Hyperparameters, *, batches: int, seed: int, device: torch.device) -> _Learner:
    torch.manual_seed(seed)
    side = hyperparameters.network_input or hyperparameters.resolution
    network = make_network(
        hyperparameters.architecture,
        input_size=side,
        pretrained=hyperparameters.pretrained,
        weights=hyperparameters.weights,
    ).to(device)
    mean, std = normalisation(network)
    rate = hyperparameters.learning_rate * math.sqrt(hyperparameters.batch_size / REFERENCE_BATCH)
    optimiser = torch.optim.AdamW(
        # Biases and norms are not decayed, as is usual; timm knows which they are.
        timm.optim.param_groups_weight_decay(network, hyperparameters.weight_decay),
        lr=rate,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=rate, total_steps=hyperparameters.epochs * batches
    )
    return _Learner(network, optimiser, scheduler, device, side, mean, std, hyperparameters.precision)


def _resume(
    learner: _Learner, load_checkpoint: Callable[[], bytes | None] | None, *, identity: str
) -> Checkpoint | None:
    data = load_checkpoint() if load_checkpoint is not None else None
    checkpoint = unpack(data, identity=identity, device=learner.device) if data is not None else None
    if checkpoint is not None:
        learner.network.load_state_dict(checkpoint.network)
        learner.optimiser.load_state_dict(checkpoint.optimiser)
        learner.scheduler.load_state_dict(checkpoint.scheduler)
    return checkpoint


def _checkpoint(learner: _Learner, *, identity: str, aucs: list[float], seconds: float) -> Checkpoint:
    return Checkpoint(
        identity=identity,
        aucs=list(aucs),
        seconds=seconds,
        network=learner.network.state_dict(),
        optimiser=learner.optimiser.state_dict(),
        scheduler=learner.scheduler.state_dict(),
    )


def _train_one_epoch(
    learner: _Learner,
    feed: Feed,
    targets: torch.Tensor,
    hyperparameters: Hyperparameters,
    *,
    seed: int,
    epoch: int,
    should_stop: Callable[[], bool],
) -> None:
    """Every training image at most once, in an order and with changes that depend on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed * 1009 + epoch)
    torch.manual_seed(seed * 1009 + epoch)  # dropout and stochastic depth
    order = torch.randperm(len(targets), generator=generator)
    batch_size = hyperparameters.batch_size
    changes = draw_augmentation(len(targets), generator=generator).to(learner.device)
    positives = targets.sum()
    positive_weight = ((len(targets) - positives) / positives.clamp(min=1)).clamp(max=MAX_POSITIVE_WEIGHT)
    learner.network.train()
    total = torch.zeros((), device=learner.device)
    for start in range(0, len(targets) - batch_size + 1, batch_size):
        if should_stop():
            raise Interrupted
        # Ascending, so that a memory-mapped array is read forwards; a batch has no order.
        positions = order[start : start + batch_size].sort().values
        images = feed(positions).float() / 255
        if hyperparameters.augment:
            images = augment(images, changes[start : start + batch_size], side=learner.side)
        else:
            images = enlarge(images, side=learner.side)
        loss = F.binary_cross_entropy_with_logits(
            learner.logits(images), targets[positions.to(learner.device)], pos_weight=positive_weight
        )
        if learner.device.type == "cpu" and not math.isfinite(loss.item()):
            raise Diverged(f"the loss became {loss.item()} in epoch {epoch}: lower the learning rate")
        loss.backward()
        learner.optimiser.step()
        learner.optimiser.zero_grad(set_to_none=True)
        learner.scheduler.step()
        total += loss.detach()
    if not math.isfinite(total.item()):  # on a GPU the only look at it, since each one waits for the device
        raise Diverged(f"the loss became {total.item()} in epoch {epoch}: lower the learning rate")


@torch.inference_mode()
def _predict(learner: _Learner, feed: Feed, count: int, *, should_stop: Callable[[], bool]) -> NDArray[np.float32]:
    """Probability of the finding for each of the feed's images, float32 [count]; leaves the network in eval mode."""
    learner.network.eval()
    batch = max(16, _PREDICTED_PIXELS // learner.side**2)
    logits = []
    for start in range(0, count, batch):
        if should_stop():
            raise Interrupted
        images = feed(torch.arange(start, min(start + batch, count))).float() / 255
        logits.append(learner.logits(enlarge(images, side=learner.side)))
    scores: NDArray[np.float32] = torch.sigmoid(torch.cat(logits)).cpu().numpy()
    return scores
