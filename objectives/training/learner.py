"""A network with its optimiser and schedule: what one batch does to it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import timm.optim
import torch
import torch.nn.functional as F

from acuity.objectives.training.augmentation import augment, enlarge
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.loader import Feed
from acuity.objectives.training.prediction import Predictor, compute_logits, make_predictor

REFERENCE_BATCH = 128  # at which a learning rate is stated; AdamW's best grows with the square root of the batch


@dataclass(frozen=True, eq=False)
class Learner(Predictor):
    """A predictor with what trains it."""

    optimiser: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler


def make_learner(hyperparameters: Hyperparameters, *, total_steps: int, device: torch.device) -> Learner:
    """Build the network, whose random part follows torch's seed, with AdamW on a one-cycle schedule."""
    predictor = make_predictor(hyperparameters, device=device)
    peak_rate = hyperparameters.learning_rate * math.sqrt(hyperparameters.batch_size / REFERENCE_BATCH)
    # Spares norms and biases.
    groups = timm.optim.param_groups_weight_decay(predictor.network, hyperparameters.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=peak_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak_rate, total_steps=total_steps)
    return Learner(**vars(predictor), optimiser=optimiser, scheduler=scheduler)


def train_batches(
    learner: Learner,
    feed: Feed,
    *,
    targets: torch.Tensor,
    batches: torch.Tensor,
    augmentation: torch.Tensor | None,
    positive_weight: float,
) -> Iterator[torch.Tensor]:
    """Take one optimiser step for each row of batches (positions in the feed), yielding its loss, still on the device.

    targets: float [N] on the device; augmentation: a row for each position, or None for images as they are.
    """
    learner.network.train()
    weight = torch.tensor(positive_weight, device=learner.device)
    if augmentation is not None:
        augmentation = augmentation.to(learner.device)
    for positions, stored in zip(batches, feed(batches), strict=True):
        images = stored.float().div_(255)
        here = positions.to(learner.device, non_blocking=True)
        if augmentation is None:
            images = enlarge(images, side=learner.side)
        else:
            images = augment(images, augmentation[here], side=learner.side)
        loss = F.binary_cross_entropy_with_logits(compute_logits(learner, images), targets[here], pos_weight=weight)
        loss.backward()
        learner.optimiser.step()
        learner.scheduler.step()
        learner.optimiser.zero_grad()
        yield loss.detach()
