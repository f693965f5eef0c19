"""Find the largest batch size within a memory budget by an estimate and real training steps."""

import time
from dataclasses import dataclass
from functools import partial

import torch

from acuity.objectives.device.memory import (
    MIB,
    held_memory_mib,
    is_out_of_memory,
    release_failed_step,
    reserved_memory_mib,
    watch_peak_memory,
)
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.step_memory import (
    StepMemory,
    estimate_step_memory,
    largest_batch,
    largest_countable_batch,
)

# Once a batch has fitted, no step is taken after this many, or one more if the largest batch that fitted is below
# _CLOSE_FRACTION of the smallest that did not.
_MAX_STEPS = 3
_CLOSE_FRACTION = 0.9
# Fraction of the budget at which the next guess aims: the peak varies between steps, on a CPU with earlier allocations.
_TARGET_FRACTION = 0.96


@dataclass(frozen=True)
class BatchProbe:
    """The largest batch size within a memory budget, with the memory and speed of its training step."""

    architecture: str
    input_size: int
    precision: str
    budget_mib: float
    estimate: int
    """Largest batch size by the estimate alone, at most max_batch_size."""
    verified: int
    """Largest batch size whose real steps fitted; 0 if none did."""
    steps: int
    """Number of tries: one real step each on a CPU, two on a GPU."""
    peak_memory_mib: float
    """Of the steps of the verified batch size; on a GPU the memory that torch's allocator reserved."""
    images_per_second: float
    """Of the last step of the verified batch size."""


def probe_batch(
    architecture: str,
    *,
    input_size: int,
    precision: str,
    device: torch.device,
    budget_bytes: int,
    max_batch_size: int = 1024,
    augmentation: str | None = None,
    loss: str | None = None,
) -> BatchProbe:
    """Find the largest batch size up to max_batch_size whose training step peaks within budget_bytes on the device.

    Sizes are multiples of 8 (of 1 below 8). It tries a small step, a step at the estimated size, a step at the size
    that the measured peak suggests, and rarely more. No tensor of a step has more than 2^31 - 1 elements. On a GPU
    budget_bytes is compared with the memory that torch's allocator reserves, so the room for resident images, which a
    worker has in addition, stays free. augmentation and loss: the user's functions in a step, as in `Hyperparameters`.
    InputError if the architecture is unknown or does not take images of this size.
    """
    memory = estimate_step_memory(architecture, input_size=input_size, precision=precision, device_type=device.type)
    max_batch_size = min(max_batch_size, largest_countable_batch(memory))
    estimate = min(largest_batch(memory, budget_bytes), max_batch_size)
    # A first small step creates the optimiser's state and loads libraries, which are not part of a step's memory.
    steps, fitting, too_large = 1, 0, max_batch_size + 1
    settings = Hyperparameters(
        architecture, input_size, 2, 1e-3, 1, precision=precision, augmentation=augmentation, loss=loss
    )
    learner = _make_learner_if_it_fits(settings, device=device)
    warmed_up = learner and _take_steps(learner, 2, device, held_mib=0.0)
    held_mib = 0.0 if device.type == "cuda" else held_memory_mib(device) - 0.75 * memory.fixed_bytes / MIB
    peak_mib = seconds = 0.0
    guess, max_steps = estimate or 2, _MAX_STEPS
    while learner and warmed_up and fitting < guess < too_large and not (fitting and steps >= max_steps):
        steps += 1
        measured = _take_steps(learner, guess, device, held_mib=held_mib)
        if measured is not None and measured[0] * MIB <= budget_bytes:
            fitting, (peak_mib, seconds) = guess, measured
        else:
            too_large = guess
            max_steps = _MAX_STEPS + (fitting < _CLOSE_FRACTION * too_large)
        guess = _next_guess(
            memory,
            budget_bytes,
            fitting=fitting,
            too_large=too_large,
            peak_mib=peak_mib,
            max_batch_size=max_batch_size,
        )
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
    memory: StepMemory, budget_bytes: int, *, fitting: int, too_large: int, peak_mib: float, max_batch_size: int
) -> int:
    """Estimate the largest batch size from the measured peak; three quarters of too_large if no batch has fitted."""
    if not fitting:
        return largest_batch(StepMemory(0, 1), too_large * 3 // 4)
    measured = StepMemory(memory.fixed_bytes, max(peak_mib * MIB - memory.fixed_bytes, 1) / fitting)
    guess = min(largest_batch(measured, int(budget_bytes * _TARGET_FRACTION)), max_batch_size)
    if guess >= too_large:
        guess = largest_batch(StepMemory(0, 1), (fitting + 3 * too_large) // 4)
    return guess


def _make_learner_if_it_fits(settings: Hyperparameters, *, device: torch.device) -> Learner | None:
    try:
        return make_learner(settings, total_steps=1000, device=device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def _take_steps(
    learner: Learner, batch_size: int, device: torch.device, *, held_mib: float
) -> tuple[float, float] | None:
    """Take training steps on random images; returns their peak in MiB above held_mib and the seconds of the last.

    None if memory ran out. On a GPU there are two: cuDNN plans in the first, and the second one's tensors must fit
    between blocks that the first has left.
    """
    steps = 2 if device.type == "cuda" else 1
    release_failed_step(device)
    images = torch.randint(0, 256, (batch_size, 1, learner.side, learner.side), dtype=torch.uint8).to(device)
    # On a CPU the allocator keeps much of an earlier step's memory, and this step uses it again.
    kept_mib = 0.0 if device.type == "cuda" else held_memory_mib(device) - held_mib
    reserved_mib = reserved_memory_mib()
    peak_memory_mib = watch_peak_memory(device, reserved=True)
    finished = [time.perf_counter()]
    try:
        for loss in train_batches(
            learner,
            partial(map, lambda positions: images[positions.to(device)]),
            targets=(torch.arange(batch_size, device=device) % 2).float(),
            batches=torch.arange(batch_size).repeat(steps, 1),
            augmentation=draw_augmentation(batch_size, generator=torch.Generator().manual_seed(0)),
            positive_weight=1.0,
        ):
            loss.item()  # waits for the step
            finished.append(time.perf_counter())
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        learner.optimiser.zero_grad()
        return None
    seconds = finished[-1] - finished[-2]
    # The memory limit of a CPU worker counts allocations, such as the arenas of threads, before they are written to.
    newly_reserved_mib = 0.0 if device.type == "cuda" else max(0.0, reserved_memory_mib() - reserved_mib)
    return kept_mib + peak_memory_mib() + newly_reserved_mib, seconds
