"""Train one network for one label, with validation, a checkpoint and a report after each epoch."""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.device.memory import is_device_error, release_failed_step, watch_peak_memory
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.metrics import accuracy, auc, average_precision, youden_threshold
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.captured_step import CapturedStep, CaptureSetting, capture_training, replay_batches
from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_from_bytes
from acuity.objectives.training.checkpoint_writer import CheckpointWriter
from acuity.objectives.training.interface import (
    Diverged,
    Hyperparameters,
    Interrupted,
    LabelledImages,
    Outcome,
    check_trainable,
)
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import BatchLoader, open_loaders
from acuity.objectives.training.prediction import predict_batches, probabilities

# Without a maximum, one positive image of a rare label would outweigh all negatives of its batch.
MAX_POSITIVE_WEIGHT = 20.0
logger = logging.getLogger(__name__)


def train(
    hyperparameters: Hyperparameters,
    data: LabelledImages,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[int, float], bool],
    should_stop: Callable[[], bool] = lambda: False,
    load_checkpoint: Callable[[], bytes | None] | None = None,
    save_checkpoint: Callable[[memoryview], None] | None = None,
    checkpoint_s: float = 30.0,
    image_budget_bytes: int | None = None,
    capture_steps: CaptureSetting = "auto",
) -> Outcome:
    """Train and validate a network.

    report(epoch, validation AUC) is called after each epoch, counted from 1; the training ends if it returns True.
    A resumed training first reports its finished epochs again. Of these reports only the last can end the training: it
    continued after the earlier ones. On a CPU with the same number of threads, the result of a resumed training equals
    that of an uninterrupted one bit for bit. image_budget_bytes: as `open_loaders` takes it. capture_steps: as
    `capture_training` takes it. Raises Interrupted within a batch after should_stop() returns True, Diverged,
    InputError.

    save_checkpoint(data) is called in a thread: about every checkpoint_s, or after each epoch if an epoch takes longer;
    for the last finished epoch before Interrupted; and at the end, with the network alone, unless report() ended the
    training. Its errors are raised here. No call is left when this function ends.
    """
    started = time.perf_counter()
    release_failed_step(device)  # an earlier training of this process may have failed
    peak_memory_mib = watch_peak_memory(device)
    check_trainable(hyperparameters, data)
    batches = len(data.training) // hyperparameters.batch_size  # an incomplete last batch is dropped
    identity = _identity(hyperparameters, data, seed)
    learner, aucs, seconds_before = _start(
        hyperparameters, batches=batches, seed=seed, device=device, identity=identity, load_checkpoint=load_checkpoint
    )
    training, validation = open_loaders(
        data.images, data.training, data.validation, device=device, image_budget_bytes=image_budget_bytes
    )
    training_targets = torch.from_numpy(data.targets[data.training])
    validation_targets = data.targets[data.validation]

    resumed_epochs = len(aucs)
    stop_requests = [report(epoch, value) for epoch, value in enumerate(aucs, start=1)]
    stopped = bool(stop_requests) and stop_requests[-1] and len(aucs) < hyperparameters.epochs
    captured = None
    if len(aucs) < hyperparameters.epochs and not stopped:
        captured = capture_training(
            learner,
            training,
            setting=capture_steps,
            targets=training_targets,
            batch_shape=(batches, hyperparameters.batch_size),
            epochs=hyperparameters.epochs - len(aucs),
            augment=hyperparameters.augment,
            positive_weight=_positive_weight(training_targets),
        )
    steps, steps_s, scores = 0, 0.0, None
    network = learner.network.state_dict()  # once: it takes 1 ms, and steps change its tensors in place
    with CheckpointWriter(save_checkpoint, device=device, interval_s=checkpoint_s) as writer:
        while len(aucs) < hyperparameters.epochs and not stopped:
            epoch = len(aucs) + 1
            epoch_started = time.perf_counter()
            _train_one_epoch(
                learner,
                training,
                training_targets,
                hyperparameters,
                captured=captured,
                seed=seed,
                epoch=epoch,
                should_stop=should_stop,
            )
            steps, steps_s = steps + batches, steps_s + time.perf_counter() - epoch_started
            scores = _predict(
                learner, validation, num_images=len(validation_targets), epoch=epoch, should_stop=should_stop
            )
            aucs.append(auc(validation_targets, scores))
            seconds = seconds_before + time.perf_counter() - started
            if epoch < hyperparameters.epochs:
                writer.keep(_checkpoint(learner, network, aucs, seconds, identity=identity))
            else:
                writer.write_last(_last_checkpoint(learner, network, aucs, seconds, identity=identity))
            stopped = report(epoch, aucs[-1]) and epoch < hyperparameters.epochs

        if scores is None:  # the checkpoint holds all epochs, or its last report ends the training
            scores = _predict(
                learner, validation, num_images=len(validation_targets), epoch=len(aucs), should_stop=should_stop
            )
            if not stopped:  # earlier attempts' checkpoints are removed when the trial ends
                writer.write_last(_last_checkpoint(learner, network, aucs, seconds_before, identity=identity))
    return Outcome(
        auc=auc(validation_targets, scores),
        auc_se=auc_standard_error(validation_targets, scores, data.patients[data.validation]),
        accuracy=accuracy(validation_targets, scores, threshold=youden_threshold(validation_targets, scores)),
        average_precision=average_precision(validation_targets, scores),
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
) -> tuple[Learner, list[float], float]:
    """Build the learner and restore it from an undamaged checkpoint of this training.

    Returns the learner, the AUCs of its finished epochs and their seconds.
    """
    learner = _new_learner(hyperparameters, batches=batches, seed=seed, device=device)
    saved = load_checkpoint() if load_checkpoint else None
    checkpoint = checkpoint_from_bytes(saved, identity=identity) if saved is not None else None
    if checkpoint is None:
        return learner, [], 0.0
    try:
        learner.network.load_state_dict(checkpoint.network)
        if len(checkpoint.aucs) < hyperparameters.epochs:
            learner.optimiser.load_state_dict(checkpoint.optimiser)
            learner.scheduler.load_state_dict(checkpoint.scheduler)
    except Exception as error:
        if is_device_error(error):
            raise
        logger.warning("checkpoint of other library versions (%s): training starts from zero", error)
    else:
        return learner, checkpoint.aucs, checkpoint.seconds
    del learner  # the device has room for one network
    return _new_learner(hyperparameters, batches=batches, seed=seed, device=device), [], 0.0


def _new_learner(hyperparameters: Hyperparameters, *, batches: int, seed: int, device: torch.device) -> Learner:
    torch.manual_seed(_derive_seed(seed, epoch=0))
    return make_learner(hyperparameters, total_steps=hyperparameters.epochs * batches, device=device)


def _train_one_epoch(
    learner: Learner,
    loader: BatchLoader,
    targets: torch.Tensor,
    hyperparameters: Hyperparameters,
    *,
    captured: CapturedStep | None,
    seed: int,
    epoch: int,
    should_stop: Callable[[], bool],
) -> None:
    """Train on every image at most once; (seed, epoch) determines the order and the augmentation."""
    torch.manual_seed(_derive_seed(seed, epoch=epoch))  # dropout and stochastic depth
    generator = torch.Generator().manual_seed(_derive_seed(seed, epoch=epoch))
    order = torch.randperm(len(targets), generator=generator)
    num_images = len(targets) // hyperparameters.batch_size * hyperparameters.batch_size
    # Order within a batch does not matter; ascending order reads the memory map sequentially.
    batches = order[:num_images].view(-1, hyperparameters.batch_size).sort(dim=1).values
    augmentation = draw_augmentation(len(targets), generator=generator) if hyperparameters.augment else None
    if captured is None:
        losses = train_batches(
            learner,
            loader,
            targets=targets.to(learner.device),
            batches=batches,
            augmentation=augmentation,
            positive_weight=_positive_weight(targets),
        )
        finite_so_far: Iterator[torch.Tensor] = itertools.accumulate(
            (loss.isfinite() for loss in losses), torch.logical_and
        )
    else:
        finite_so_far = replay_batches(captured, batches=batches, augmentation=augmentation)
    for finite in finite_so_far:
        if learner.device.type == "cpu" and not finite:  # reading a value waits for a GPU, so there once an epoch
            break
        if should_stop():
            raise Interrupted
    if not finite:
        own = [name for name in (hyperparameters.augmentation, hyperparameters.loss) if name]
        advice = f", or correct {' or '.join(own)}" if own else ""
        raise Diverged(f"the loss became NaN or infinite in epoch {epoch}: lower the learning rate{advice}")


def _positive_weight(targets: torch.Tensor) -> float:
    """Weight of a positive image in the loss."""
    positives = float(targets.sum())
    return min((len(targets) - positives) / positives, MAX_POSITIVE_WEIGHT)


def _predict(
    learner: Learner, loader: BatchLoader, *, num_images: int, epoch: int, should_stop: Callable[[], bool]
) -> NDArray[np.float64]:
    """Probability of the finding for each of the loader's images."""
    logits = []
    for batch in predict_batches(learner, loader, num_images=num_images):
        logits.append(batch)
        if should_stop():
            raise Interrupted
    scores = probabilities(logits)
    if np.isnan(scores).any():
        raise Diverged(f"a prediction became NaN after epoch {epoch}: lower the learning rate")
    return scores


def _checkpoint(
    learner: Learner, network: dict[str, Any], aucs: list[float], seconds: float, *, identity: str
) -> Checkpoint:
    return Checkpoint(
        identity=identity,
        aucs=list(aucs),
        seconds=seconds,
        network=network,
        optimiser=learner.optimiser.state_dict(),
        scheduler=learner.scheduler.state_dict(),
    )


def _last_checkpoint(
    learner: Learner, network: dict[str, Any], aucs: list[float], seconds: float, *, identity: str
) -> Checkpoint:
    """The checkpoint after the last epoch, from which nothing is trained any more."""
    return replace(_checkpoint(learner, network, aucs, seconds, identity=identity), optimiser={}, scheduler={})


def _identity(hyperparameters: Hyperparameters, data: LabelledImages, seed: int) -> str:
    """Identity of a training, which its checkpoint must share; paths of weights may differ between hosts."""
    settings = {name: value for name, value in asdict(hyperparameters).items() if name != "weights"}
    positives = [int(data.targets[rows].sum()) for rows in (data.training, data.validation)]
    return json.dumps({**settings, "seed": seed, "images": [len(data.training), len(data.validation), *positives]})


def _derive_seed(seed: int, *, epoch: int) -> int:
    """Seed of an epoch (0: of the network's random weights), so that a resumed training needs no generator's state."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
