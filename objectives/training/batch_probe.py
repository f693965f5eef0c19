"""The largest batch size within a memory budget: estimated, then verified by real training steps."""

import time
from dataclasses import dataclass
from functools import partial

import torch

from acuity.objectives.device.memory import (
    MIB,
    forget_failed_step,
    held_memory_mib,
    is_out_of_memory,
    reserved_memory_mib,
    watch_peak_memory,
)
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.step_memory import StepMemory, estimate_step_memory, largest_batch

MOST_STEPS = 3  # once a batch has fitted; one more where the last failed and the edge is far from what fitted
_FAR = 0.9
# A step's peak varies from one to the next, on a CPU with what the allocator was asked for before, so the next guess
# stays this far below.
_MARGIN = 0.96


@dataclass(frozen=True)
class BatchProbe:
    """The largest batch size within a memory budget, with the memory and speed of its training step."""

    architecture: str
    input_size: int
    precision: str
    budget_mib: float
    estimate: int
    """Largest batch by the estimate alone, up to the most that was asked for."""
    verified: int
    """Largest batch whose real step fitted; 0 if none did."""
    steps: int
    """Real steps that this took."""
    peak_memory_mib: float
    """Of the verified batch's step."""
    images_per_second: float
    """Of the verified batch's step."""


def probe_batch(
    architecture: str, *, input_size: int, precision: str, device: torch.device, budget_bytes: int, most: int = 1024
) -> BatchProbe:
    """Find the largest batch, at most `most`, whose training step peaks within budget_bytes on the device.

    A small step, one at the estimate, one where its measured peak says the edge is, seldom more; sizes are multiples of
    8 (of 1 below 8). InputError for an architecture that is unknown or takes no such images.
    """
    memory = estimate_step_memory(architecture, input_size=input_size, precision=precision, device_type=device.type)
    estimate = min(largest_batch(memory, budget_bytes), most)
    learner = make_learner(
        Hyperparameters(architecture, input_size, 2, 1e-3, 1, precision=precision), total_steps=1000, device=device
    )
    # A first small step makes the optimiser's state and has libraries loaded that are no part of a step's memory.
    steps, fitting, too_large = 1, 0, most + 1
    warm = _take_step(learner, 2, device, held_mib=0.0)
    held_mib = 0.0 if device.type == "cuda" else held_memory_mib(device) - 0.75 * memory.fixed_bytes / MIB
    peak_mib = seconds = 0.0
    guess, most_steps = estimate or 2, MOST_STEPS
    while warm and fitting < guess < too_large and not (fitting and steps >= most_steps):
        steps += 1
        taken = _take_step(learner, guess, device, held_mib=held_mib)
        if taken is not None and taken[0] * MIB <= budget_bytes:
            fitting, (peak_mib, seconds) = guess, taken
        else:
            too_large = guess
            most_steps = MOST_STEPS + (fitting < _FAR * too_large)
        guess = _next_guess(memory, budget_bytes, fitting=fitting, too_large=too_large, peak_mib=peak_mib, most=most)
    return BatchProbe(
        architecture=architecture,
        input_size=input_size,
        precision=precision,
        budget_mib=budget_bytes / MIB,
        estimate=estimate,
        verified=fitting,
        steps=steps,
        peak_memory_mib=peak_mib,
        images_per_second=fitting / seconds if fitting else 0.0,
    )


def _next_guess(
    memory: StepMemory, budget_bytes: int, *, fitting: int, too_large: int, peak_mib: float, most: int
) -> int:
    """Where the peak measured at the batch that fitted puts the edge, or well below what is known not to fit."""
    if not fitting:
        return largest_batch(StepMemory(0, 1), too_large * 3 // 4)
    measured = StepMemory(memory.fixed_bytes, max(peak_mib * MIB - memory.fixed_bytes, 1) / fitting)
    edge = min(largest_batch(measured, int(budget_bytes * _MARGIN)), most)
    if edge >= too_large:
        edge = largest_batch(StepMemory(0, 1), (fitting + 3 * too_large) // 4)
    return edge


def _take_step(
    learner: Learner, batch_size: int, device: torch.device, *, held_mib: float
) -> tuple[float, float] | None:
    """One training step on random images: its peak in MiB above held_mib, and seconds; None where memory ran out."""
    forget_failed_step(device)
    images = torch.randint(0, 256, (batch_size, 1, learner.side, learner.side), dtype=torch.uint8).to(device)
    # On a CPU the allocator keeps much of an earlier step's memory, which this one uses again.
    kept_mib = 0.0 if device.type == "cuda" else held_memory_mib(device) - held_mib
    reserved_mib = reserved_memory_mib()
    peak_memory_mib = watch_peak_memory(device)
    began = time.perf_counter()
    try:
        for loss in train_batches(
            learner,
            partial(map, lambda positions: images[positions.to(device)]),
            targets=(torch.arange(batch_size, device=device) % 2).float(),
            batches=torch.arange(batch_size).unsqueeze(0),
            augmentation=draw_augmentation(batch_size, generator=torch.Generator().manual_seed(0)),
            positive_weight=1.0,
        ):
            loss.item()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        learner.optimiser.zero_grad()
        return None
    seconds = time.perf_counter() - began
    # Threads' arenas and the like, which a limit of a CPU worker's memory counts before they are written to.
    newly_reserved_mib = 0.0 if device.type == "cuda" else max(0.0, reserved_memory_mib() - reserved_mib)
    return kept_mib + peak_memory_mib() + newly_reserved_mib, seconds
