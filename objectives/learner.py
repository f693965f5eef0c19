"""A network with its optimiser and schedule: what one batch does to it, and what it says of another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import timm.optim
import torch
import torch.nn.functional as F

from objectives.augmentation import augment, enlarge
from objectives.image_feed import Feed
from objectives.network import make_network, normalisation
from objectives.task import Hyperparameters

REFERENCE_BATCH = 128  # at which a learning rate is stated; AdamW's best grows with the square root of the batch


@dataclass(frozen=True, eq=False)
class Learner:
    """A network on its device with what trains it; the network sees side x side pixels."""

    network: torch.nn.Module
    optimiser: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    side: int
    precision: str


def make_learner(hyperparameters: Hyperparameters, *, total_steps: int, device: torch.device) -> Learner:
    """Build the network, whose random part follows torch's seed, with AdamW on a one-cycle schedule."""
    network = make_network(
        hyperparameters.architecture,
        input_size=hyperparameters.side,
        pretrained=hyperparameters.pretrained,
        weights=hyperparameters.weights,
    ).to(device)
    if device.type == "cpu":
        # One core, img/s against the default layout: test_resnet 1.4, mobilenetv3_small_050 1.8, densenet121 1.3,
        # efficientnet_b0 1.4, resnet10t 1.2, resnet34 and convnext_atto 0.96 times.
        network = network.to(memory_format=torch.channels_last)
    peak_rate = hyperparameters.learning_rate * math.sqrt(hyperparameters.batch_size / REFERENCE_BATCH)
    groups = timm.optim.param_groups_weight_decay(network, hyperparameters.weight_decay)  # spares norms and biases
    optimiser = torch.optim.AdamW(groups, lr=peak_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak_rate, total_steps=total_steps)
    return Learner(network, optimiser, scheduler, device, hyperparameters.side, hyperparameters.precision)


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
    for positions in batches:
        images = feed(positions).float().div_(255)
        here = positions.to(learner.device, non_blocking=True)
        if augmentation is None:
            images = enlarge(images, side=learner.side)
        else:
            images = augment(images, augmentation[here], side=learner.side)
        loss = F.binary_cross_entropy_with_logits(_logits(learner, images), targets[here], pos_weight=weight)
        loss.backward()
        learner.optimiser.step()
        learner.scheduler.step()
        learner.optimiser.zero_grad()
        yield loss.detach()


def predict_batches(learner: Learner, feed: Feed, *, num_images: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Logits (float32, on the device) of the feed's images in order; leaves the network in eval mode."""
    learner.network.eval()
    for positions in torch.arange(num_images).split(batch_size):
        with torch.inference_mode():
            yield _logits(learner, enlarge(feed(positions).float().div_(255), side=learner.side))


def _logits(learner: Learner, images: torch.Tensor) -> torch.Tensor:
    mean, std = normalisation(learner.network)
    images = (images - mean) / std
    if learner.device.type == "cpu":
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(learner.device.type, dtype=torch.bfloat16, enabled=learner.precision == "bf16"):
        logits: torch.Tensor = learner.network(images)
    return logits.float().flatten()
