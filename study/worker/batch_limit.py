"""Find the largest batch that fits a device's memory, once for all workers of the fleet."""

import functools
import hashlib

import torch

from acuity.objectives.device.device import Device, memory_shortage
from acuity.objectives.training.batch_probe import probe_batch
from acuity.objectives.training.own_function import source_sha256
from acuity.objectives.training.prediction import uses_channels_last
from acuity.objectives.training.step_memory import (
    MAX_ELEMENTS,
    StepMemory,
    estimate_step_memory,
    largest_batch,
    largest_countable_batch,
)
from acuity.storage.database import Database
from acuity.storage.feasible_batches import FeasibleBatchKey, find_or_measure, lower_feasible_batch, read_feasible_batch
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.search.networks import own_functions


def memory_limit(
    database: Database, device: Device, experiment: Experiment, *, architecture: str, resolution: int
) -> int:
    """Largest batch size that fits the memory: read from the fleet's table, or measured here and written to it."""
    key = _key(device, experiment, architecture, resolution)

    def measure() -> int:
        if device.torch_device.type == "cuda":
            return _verified_limit(key, device, experiment)
        # On a CPU a step of this size takes as long as an epoch. A trial that runs out of memory retries at half.
        return largest_batch(_step_memory(key, device), device.memory_budget_bytes)

    return find_or_measure(database, key, measure)


def known_memory_limit(
    database: Database, device: Device, experiment: Experiment, *, architecture: str, resolution: int
) -> int | None:
    """Largest batch size that fits the memory, from the fleet's table; None where it is not measured yet."""
    return read_feasible_batch(database, _key(device, experiment, architecture, resolution))


def element_limit(device: Device, experiment: Experiment, *, architecture: str, resolution: int) -> int | None:
    """Largest batch size without a tensor of more than 2^31 - 1 elements; None where no such tensor fits the memory."""
    if device.memory_budget_bytes <= MAX_ELEMENTS:
        return None
    return largest_countable_batch(_step_memory(_key(device, experiment, architecture, resolution), device))


def _verified_limit(key: FeasibleBatchKey, device: Device, experiment: Experiment) -> int:
    """Largest batch size of a step that ran; where the largest batch of any trial ran, the estimate, if larger."""
    most = experiment.search.max_batch_size
    _refuse_if_held(device)
    fit = probe_batch(
        key.architecture,
        input_size=key.input_size,
        precision=key.precision,
        device=device.torch_device,
        budget_bytes=device.memory_budget_bytes,
        max_batch_size=most,
        augmentation=experiment.training.augmentation,
        loss=experiment.training.loss,
    )
    torch.cuda.empty_cache()
    _refuse_if_held(device)
    memory = _step_memory(key, device)
    if fit.verified < min(most, largest_countable_batch(memory)) // 8 * 8:
        return fit.verified
    return max(fit.verified, largest_batch(memory, device.memory_budget_bytes))


def _refuse_if_held(device: Device) -> None:
    """UsageError where other programs hold part of the share: the limit would be too small, and the fleet keeps it."""
    held = memory_shortage(device)
    if held:
        raise UsageError(held)


def _step_memory(key: FeasibleBatchKey, device: Device) -> StepMemory:
    return estimate_step_memory(
        key.architecture, input_size=key.input_size, precision=key.precision, device_type=device.torch_device.type
    )


def lower_memory_limit(
    database: Database, device: Device, experiment: Experiment, *, architecture: str, resolution: int, limit: int
) -> None:
    """Lower the fleet's limit after a real step ran out of memory above it."""
    lower_feasible_batch(database, _key(device, experiment, architecture, resolution), limit)


def _key(device: Device, experiment: Experiment, architecture: str, resolution: int) -> FeasibleBatchKey:
    training = experiment.training
    return FeasibleBatchKey(
        device=device.name,
        memory_budget_bytes=device.memory_budget_bytes,
        architecture=architecture,
        input_size=training.network_input or resolution,
        precision=training.precision,
        channels_last=uses_channels_last(device.torch_device, training.precision),
        torch_version=torch.__version__,
        source_sha256=_source_sha256(tuple(own_functions(training, [architecture]))),
    )


@functools.cache  # this process has imported the modules; a claim's lock is held
def _source_sha256(names: tuple[str, ...]) -> str:
    """SHA-256 of the sources of the user's functions; empty without any."""
    return hashlib.sha256("".join(source_sha256(name) for name in names).encode()).hexdigest() if names else ""
