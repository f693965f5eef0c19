"""Train one network for one label: epochs that end in a validation AUC, a checkpoint and a report."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.device.memory import forget_failed_step, watch_peak_memory
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.metrics import accuracy, auc, average_precision, youden_threshold
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.checkpoint import Checkpoint, pack, unpack
from acuity.objectives.training.interface import (
    Diverged,
    Hyperparameters,
    Interrupted,
    LabelledImages,
    Outcome,
    check_task,
)
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import Feed, open_feeds
from acuity.objectives.training.prediction import predict_batches, probabilities

# A positive of a rare label would otherwise outweigh whole batches of negatives, and one image would steer each step.
MAX_POSITIVE_WEIGHT = 20.0
logger = logging.getLogger(__name__)


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

    A training resumed from its checkpoint reports its finished epochs again first and heeds the answer to the last of
    them alone (the others are paid for). On a CPU with as many threads it ends bit for bit as if never interrupted.
    workers: how many share the device. Raises Interrupted within a batch of should_stop(), Diverged, InputError.
    """
    started = time.perf_counter()
    forget_failed_step(device)  # of whichever training failed in this process before, and for whatever reason
    peak_memory_mib = watch_peak_memory(device)
    check_task(hyperparameters, data)
    batches = len(data.training) // hyperparameters.batch_size  # an incomplete last one is dropped
    identity = _identity(hyperparameters, data, seed)
    learner, checkpoint = _start(
        hyperparameters, batches=batches, seed=seed, device=device, identity=identity, load_checkpoint=load_checkpoint
    )
    aucs, seconds_before = (checkpoint.aucs, checkpoint.seconds) if checkpoint else ([], 0.0)
    training, validation = open_feeds(data.images, data.training, data.validation, device=device, workers=workers)
    targets, known = torch.from_numpy(data.targets[data.training]), data.targets[data.validation]

    resumed_epochs = len(aucs)
    answers = [report(epoch, area) for epoch, area in enumerate(aucs, start=1)]
    stopped = bool(answers) and answers[-1] and len(aucs) < hyperparameters.epochs
    steps, steps_s, scores = 0, 0.0, None
    while len(aucs) < hyperparameters.epochs and not stopped:
        epoch = len(aucs) + 1
        epoch_started = time.perf_counter()
        _train_one_epoch(learner, training, targets, hyperparameters, seed=seed, epoch=epoch, should_stop=should_stop)
        steps, steps_s = steps + batches, steps_s + time.perf_counter() - epoch_started
        scores = _predict(learner, validation, num_images=len(known), epoch=epoch, should_stop=should_stop)
        aucs.append(auc(known, scores))
        if save_checkpoint:
            seconds = seconds_before + time.perf_counter() - started
            save_checkpoint(pack(_checkpoint(learner, aucs, seconds, identity=identity)))
        stopped = report(epoch, aucs[-1]) and epoch < hyperparameters.epochs

    if scores is None:  # all that was to train is in the checkpoint
        scores = _predict(learner, validation, num_images=len(known), epoch=len(aucs), should_stop=should_stop)
        if save_checkpoint:  # this attempt's own: earlier ones' are removed once the trial is told
            save_checkpoint(pack(_checkpoint(learner, aucs, seconds_before, identity=identity)))
    return Outcome(
        auc=auc(known, scores),
        auc_se=auc_standard_error(known, scores, data.patients[data.validation]),
        accuracy=accuracy(known, scores, threshold=youden_threshold(known, scores)),
        average_precision=average_precision(known, scores),
        epochs=len(aucs),
        resumed_epochs=resumed_epochs,
        seconds=seconds_before + time.perf_counter() - started,
        images_per_second=steps * hyperparameters.batch_size / steps_s if steps else 0.0,
        peak_memory_mib=peak_memory_mib(),
        stopped=stopped,
        scores=scores,
    )


def _start(
    hyperparameters: Hyperparameters,
    *,
    batches: int,
    seed: int,
    device: torch.device,
    identity: str,
    load_checkpoint: Callable[[], bytes | None] | None,
) -> tuple[Learner, Checkpoint | None]:
    """A new learner, or the one of a checkpoint that is whole and this training's own."""

    def begin() -> Learner:
        torch.manual_seed(_derive_seed(seed, epoch=0))
        return make_learner(hyperparameters, total_steps=hyperparameters.epochs * batches, device=device)

    learner = begin()
    saved = load_checkpoint() if load_checkpoint else None
    checkpoint = unpack(saved, identity=identity, device=device) if saved is not None else None
    if checkpoint is None:
        return learner, None
    try:
        learner.network.load_state_dict(checkpoint.network)
        learner.optimiser.load_state_dict(checkpoint.optimiser)
        learner.scheduler.load_state_dict(checkpoint.scheduler)
    except (KeyError, RuntimeError, ValueError) as error:
        logger.warning("checkpoint of other library versions (%s): training starts from zero", error)
        return begin(), None
    return learner, checkpoint


def _train_one_epoch(
    learner: Learner,
    feed: Feed,
    targets: torch.Tensor,
    hyperparameters: Hyperparameters,
    *,
    seed: int,
    epoch: int,
    should_stop: Callable[[], bool],
) -> None:
    """Every training image at most once, in an order and with changes that depend on (seed, epoch) alone."""
    torch.manual_seed(_derive_seed(seed, epoch=epoch))  # dropout and stochastic depth
    generator = torch.Generator().manual_seed(_derive_seed(seed, epoch=epoch))
    order = torch.randperm(len(targets), generator=generator)
    whole = len(targets) // hyperparameters.batch_size * hyperparameters.batch_size
    # Order within a batch does not matter; ascending order reads the memory map sequentially.
    batches = order[:whole].view(-1, hyperparameters.batch_size).sort(dim=1).values
    positives = float(targets.sum())
    finite = torch.ones((), dtype=torch.bool, device=learner.device)
    for loss in train_batches(
        learner,
        feed,
        targets=targets.to(learner.device),
        batches=batches,
        augmentation=draw_augmentation(len(targets), generator=generator) if hyperparameters.augment else None,
        positive_weight=min((len(targets) - positives) / positives, MAX_POSITIVE_WEIGHT),
    ):
        finite &= loss.isfinite()
        if learner.device.type == "cpu" and not finite:  # to ask a GPU is to wait for it, so once an epoch there
            break
        if should_stop():
            raise Interrupted
    if not finite:
        raise Diverged(f"the loss became NaN or infinite in epoch {epoch}: lower the learning rate")


def _predict(
    learner: Learner, feed: Feed, *, num_images: int, epoch: int, should_stop: Callable[[], bool]
) -> NDArray[np.float64]:
    """Probability of the finding for each of the feed's images."""
    logits = []
    for batch in predict_batches(learner, feed, num_images=num_images):
        logits.append(batch)
        if should_stop():
            raise Interrupted
    scores = probabilities(logits)
    if np.isnan(scores).any():
        raise Diverged(f"a prediction became NaN after epoch {epoch}: lower the learning rate")
    return scores


def _checkpoint(learner: Learner, aucs: list[float], seconds: float, *, identity: str) -> Checkpoint:
    return Checkpoint(
        identity=identity,
        aucs=aucs,
        seconds=seconds,
        network=learner.network.state_dict(),
        optimiser=learner.optimiser.state_dict(),
        scheduler=learner.scheduler.state_dict(),
    )


def _identity(hyperparameters: Hyperparameters, data: LabelledImages, seed: int) -> str:
    """What must be equal for a checkpoint to be continued; a file of weights may lie elsewhere on another host."""
    settings = {name: value for name, value in asdict(hyperparameters).items() if name != "weights"}
    positives = [int(data.targets[rows].sum()) for rows in (data.training, data.validation)]
    return json.dumps({**settings, "seed": seed, "images": [len(data.training), len(data.validation), *positives]})


def _derive_seed(seed: int, *, epoch: int) -> int:
    """A seed of each epoch's own (0: the network's), so that a resumed training needs no generator's state."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
