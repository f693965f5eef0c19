"""Train one network for one label, with validation, a checkpoint and a report after each epoch."""

import gc
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch

from acuity.objectives.device.memory import is_device_error, release_failed_step, watch_peak_memory
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.captured_step import CapturedStep, CaptureSetting, capture_training, replay_batches
from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_from_bytes
from acuity.objectives.training.checkpoint_writer import CheckpointWriter
from acuity.objectives.training.epochs import Epochs, derive_seed
from acuity.objectives.training.interface import (
    Diverged,
    Hyperparameters,
    Interrupted,
    LabelledImages,
    Outcome,
    check_trainable,
)
from acuity.objectives.training.learner import Learner, make_learner, make_trainable, train_batches
from acuity.objectives.training.loader import BatchLoader, open_loaders
from acuity.objectives.training.own_training import load_training
from acuity.objectives.training.prediction import Predictor

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
    own = load_training(hyperparameters.train) if hyperparameters.train else None
    if own is not None:
        gc.collect()  # a trainer and its network often are a cycle, which would keep the memory of a failed step
    release_failed_step(device)  # an earlier training of this process may have failed
    peak_memory_mib = watch_peak_memory(device)
    check_trainable(hyperparameters, data)
    identity = _identity(hyperparameters, data, seed)

    def make() -> Predictor:
        torch.manual_seed(derive_seed(seed, epoch=0))
        if own is not None:
            return make_trainable(hyperparameters, device=device)
        batches = len(data.training) // hyperparameters.batch_size  # an incomplete last batch is dropped
        return make_learner(hyperparameters, total_steps=hyperparameters.epochs * batches, device=device)

    predictor, checkpoint = _start(make, identity=identity, load_checkpoint=load_checkpoint)
    parts = (data.validation,) if own is not None else (data.validation, data.training)
    validation, *training = open_loaders(data.images, *parts, device=device, image_budget_bytes=image_budget_bytes)
    with CheckpointWriter(save_checkpoint, device=device, interval_s=checkpoint_s) as writer:
        epochs = Epochs(
            predictor,
            hyperparameters,
            data,
            validation,
            identity,
            aucs=list(checkpoint.aucs) if checkpoint else [],
            seconds_before=checkpoint.seconds if checkpoint else 0.0,
            started=started,
            writer=writer,
            report=report,
            should_stop=should_stop,
        )
        epochs.repeat_reports()
        images_per_second = 0.0
        if epochs.are_over:
            pass
        elif own is not None:
            state = checkpoint.optimiser if checkpoint else None
            images_per_second = own(epochs, seed=seed, positive_weight=_positive_weight(data), state=state)
        else:
            assert isinstance(predictor, Learner)
            images_per_second = _train_epochs(predictor, training[0], epochs, seed=seed, capture_steps=capture_steps)
        epochs.complete(predictor.network.state_dict())
    return epochs.outcome(images_per_second=images_per_second, peak_memory_mib=peak_memory_mib())


def _start(
    make: Callable[[], Predictor], *, identity: str, load_checkpoint: Callable[[], bytes | None] | None
) -> tuple[Predictor, Checkpoint | None]:
    """Make the network and restore it from an undamaged checkpoint of this training, None where there is none."""
    predictor = make()
    saved = load_checkpoint() if load_checkpoint else None
    checkpoint = checkpoint_from_bytes(saved, identity=identity) if saved is not None else None
    if checkpoint is None:
        return predictor, None
    try:
        predictor.network.load_state_dict(checkpoint.network)
        if isinstance(predictor, Learner) and checkpoint.optimiser:  # empty after the last epoch
            predictor.optimiser.load_state_dict(checkpoint.optimiser)
            predictor.scheduler.load_state_dict(checkpoint.scheduler)
    except Exception as error:
        if is_device_error(error):
            raise
        logger.warning("checkpoint of other library versions (%s): training starts from zero", error)
    else:
        return predictor, checkpoint
    del predictor  # the device has room for one network
    return make(), None


def _train_epochs(
    learner: Learner, loader: BatchLoader, epochs: Epochs, *, seed: int, capture_steps: CaptureSetting
) -> float:
    """Train the epochs that are left. Returns the speed of the training steps in images/s."""
    hyperparameters, data = epochs.hyperparameters, epochs.data
    targets = torch.from_numpy(data.targets[data.training])
    batches = len(targets) // hyperparameters.batch_size
    positive_weight = _positive_weight(data)
    captured = capture_training(
        learner,
        loader,
        setting=capture_steps,
        targets=targets,
        batch_shape=(batches, hyperparameters.batch_size),
        epochs=hyperparameters.epochs - len(epochs.aucs),
        augment=hyperparameters.augment,
        positive_weight=positive_weight,
    )
    steps, steps_s = 0, 0.0
    network = learner.network.state_dict()  # once: it takes 1 ms, and steps change its tensors in place
    while not epochs.are_over:
        epoch_started = time.perf_counter()
        _train_one_epoch(
            learner,
            loader,
            targets,
            hyperparameters,
            captured=captured,
            positive_weight=positive_weight,
            seed=seed,
            epoch=len(epochs.aucs) + 1,
            should_stop=epochs.should_stop,
        )
        steps, steps_s = steps + batches, steps_s + time.perf_counter() - epoch_started
        epochs.finish(network, optimiser=learner.optimiser.state_dict(), scheduler=learner.scheduler.state_dict())
    return steps * hyperparameters.batch_size / steps_s


def _train_one_epoch(
    learner: Learner,
    loader: BatchLoader,
    targets: torch.Tensor,
    hyperparameters: Hyperparameters,
    *,
    captured: CapturedStep | None,
    positive_weight: float,
    seed: int,
    epoch: int,
    should_stop: Callable[[], bool],
) -> None:
    """Train on every image at most once; (seed, epoch) determines the order and the augmentation."""
    torch.manual_seed(derive_seed(seed, epoch=epoch))  # dropout and stochastic depth
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch=epoch))
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
            positive_weight=positive_weight,
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


def _positive_weight(data: LabelledImages) -> float:
    """Weight of a positive image in the loss."""
    targets = data.targets[data.training]
    positives = float(targets.sum())
    return min((len(targets) - positives) / positives, MAX_POSITIVE_WEIGHT)


def _identity(hyperparameters: Hyperparameters, data: LabelledImages, seed: int) -> str:
    """Identity of a training, which its checkpoint must share; paths of weights may differ between hosts."""
    settings = {name: value for name, value in asdict(hyperparameters).items() if name != "weights"}
    positives = [int(data.targets[rows].sum()) for rows in (data.training, data.validation)]
    return json.dumps({**settings, "seed": seed, "images": [len(data.training), len(data.validation), *positives]})
