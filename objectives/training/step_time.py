"""Estimate the time of training steps from their floating-point operations and one short measurement."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import make_learner, train_batches
from acuity.objectives.training.network import make_network

TRAINING_PER_FORWARD = 3
"""The backward pass computes two products for each one of the forward pass: for inputs and for weights."""
_BATCH = 16


def forward_flops(architecture: str, *, input_size: int) -> int:
    """Floating-point operations of the forward pass of one image, without computing any."""
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 1, input_size, input_size))
    return int(counter.get_total_flops())


def measure_flops_per_second(architecture: str, *, input_size: int, precision: str, limit_s: float = 1.0) -> float:
    """Floating-point operations per second of this CPU in training steps on random images, within about limit_s s."""
    settings = Hyperparameters(architecture, input_size, _BATCH, 1e-3, 1, precision=precision)
    learner = make_learner(settings, total_steps=1000, device=torch.device("cpu"))
    images = torch.randint(0, 256, (_BATCH, 1, learner.side, learner.side), dtype=torch.uint8)
    steps = train_batches(
        learner,
        lambda batches: (images[positions] for positions in batches),
        targets=(torch.arange(_BATCH) % 2).float(),
        batches=torch.arange(_BATCH).repeat(1000, 1),
        augmentation=draw_augmentation(_BATCH, generator=torch.Generator().manual_seed(0)),
        positive_weight=1.0,
    )
    next(steps)  # the first step allocates
    began, count = time.perf_counter(), 0
    for _ in steps:
        count += 1
        if time.perf_counter() - began > limit_s:
            break
    seconds = time.perf_counter() - began
    per_step = TRAINING_PER_FORWARD * _BATCH * forward_flops(architecture, input_size=input_size)
    return per_step * count / seconds
