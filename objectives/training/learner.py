"""A network with its optimiser and learning rate schedule, and its training steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import timm.optim
import torch
import torch.nn.functional as F

from acuity.objectives.training.augmentation import augment, enlarge, prepare_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.loader import BatchLoader
from acuity.objectives.training.own_step import Augmentation, Loss, load_augmentation, load_loss
from acuity.objectives.training.padding_gradients import zero_padding_gradients
from acuity.objectives.training.prediction import Predictor, compute_logits, make_predictor

REFERENCE_BATCH = 128  # learning rates are stated at it; AdamW's best rate grows with the square root of the batch size


@dataclass(frozen=True, eq=False)
class Learner(Predictor):
    """A network on its device with its optimiser and schedule."""

    optimiser: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    own_augmentation: Augmentation | None
    """The user's, in place of the built-in one."""
    own_loss: Loss | None
    """The user's, in place of the weighted cross entropy."""


def make_learner(hyperparameters: Hyperparameters, *, total_steps: int, device: torch.device) -> Learner:
    """Build the network with AdamW on a one-cycle schedule; torch's seed determines its random weights."""
    predictor = make_trainable(hyperparameters, device=device)
    peak_rate = scaled_rate(hyperparameters)
    # No weight decay of norms and biases.
    groups = timm.optim.param_groups_weight_decay(predictor.network, hyperparameters.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=peak_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak_rate, total_steps=total_steps)
    return Learner(
        **vars(predictor),
        optimiser=optimiser,
        scheduler=scheduler,
        own_augmentation=load_augmentation(hyperparameters.augmentation) if hyperparameters.augmentation else None,
        own_loss=load_loss(hyperparameters.loss) if hyperparameters.loss else None,
    )


def make_trainable(hyperparameters: Hyperparameters, *, device: torch.device) -> Predictor:
    """Build the network as `make_predictor` does, for training steps."""
    predictor = make_predictor(hyperparameters, device=device)
    if device.type == "cpu" and hyperparameters.precision == "bf16":
        blank = torch.zeros(2, 1, predictor.side, predictor.side)
        zero_padding_gradients(predictor.network, lambda: compute_logits(predictor, blank))
    return predictor


def scaled_rate(hyperparameters: Hyperparameters) -> float:
    """The peak learning rate at the batch size of the training."""
    return hyperparameters.learning_rate * math.sqrt(hyperparameters.batch_size / REFERENCE_BATCH)


def train_batches(
    learner: Learner,
    loader: BatchLoader,
    *,
    targets: torch.Tensor,
    batches: torch.Tensor,
    augmentation: torch.Tensor | None,
    positive_weight: float,
) -> Iterator[torch.Tensor]:
    """Take one optimiser step for each row of batches; yields its loss as a tensor on the device.

    batches: int64 [steps, B], positions among the loader's rows. targets: float [N] on the device. augmentation: a row
    of parameters for each position, or None for unchanged images. positive_weight: of a positive image in the loss.
    """
    learner.network.train()
    weight = torch.tensor(positive_weight, device=learner.device)
    if augmentation is not None:
        augmentation = prepare_augmentation(augmentation).to(learner.device)
    for here, stored in zip(batches.to(learner.device), loader(batches), strict=True):
        loss = batch_loss(learner, stored, targets[here], None if augmentation is None else augmentation[here], weight)
        loss.backward()
        learner.optimiser.step()
        learner.scheduler.step()
        learner.optimiser.zero_grad()
        yield loss.detach()


def batch_loss(
    learner: Learner,
    stored: torch.Tensor,
    targets: torch.Tensor,
    augmentation: torch.Tensor | None,
    positive_weight: torch.Tensor,
) -> torch.Tensor:
    """Mean loss of a batch of stored images (uint8 [B, 1, R, R]).

    augmentation: prepared, [B, 8], or None. A learner with the user's augmentation ignores its values.
    """
    images = stored.float().div_(255)
    if augmentation is None:
        images = enlarge(images, side=learner.side)
    elif learner.own_augmentation is not None:
        images = enlarge(learner.own_augmentation(images), side=learner.side)
    else:
        images = augment(images, augmentation, side=learner.side)
    if learner.own_loss is not None:
        return learner.own_loss(compute_logits(learner, images), targets, positive_weight)
    return F.binary_cross_entropy_with_logits(compute_logits(learner, images), targets, pos_weight=positive_weight)
