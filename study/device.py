"""A worker's share of a device, and the largest batch size that fits it."""

import os
import platform
import resource
from dataclasses import dataclass

import torch

from objectives.batch_size import StepMemory, estimate_step_memory, largest_batch, memory_budget, resident_image_bytes
from objectives.fit import probe_batch
from objectives.peak_memory import process_memory_bytes
from objectives.prediction import is_channels_last
from storage.database import Database
from storage.feasible_batches import FeasibleBatchKey, find_or_measure, lower_feasible_batch
from study.config_schema import Experiment
from study.errors import UsageError
from study.units import format_bytes

_MOST_OF_IT = 0.75
"""Fraction of a worker's share that must be free; other workers' CUDA contexts take the rest."""
_SLACK_BYTES = 2**29  # thread stacks, images in transit to the network, growth of the interpreter


@dataclass(frozen=True)
class Device:
    """A worker's share of a device."""

    torch_device: torch.device
    name: str
    threads: int
    memory_budget_bytes: int
    """Memory for training steps, without the images that a GPU holds."""
    workers: int = 1
    """Number of workers that share the device."""


def open_device(
    choice: str, *, workers: int, threads: int | None = None, memory_budget_gib: float | None = None
) -> Device:
    """Take a share of a device: "auto", "cpu", "cuda" or "cuda:1". workers: number of workers that share it."""
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(choice)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {choice} cannot be used here ({reason}); use --device cpu or another one") from None
    share = threads or max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(share)
    return Device(
        torch_device=device,
        name=_device_name(device),
        threads=share,
        memory_budget_bytes=memory_budget(device, workers=workers, memory_gib=memory_budget_gib),
        workers=workers,
    )


def is_usable(device: Device) -> bool:
    """Whether the device still computes: after some CUDA errors every later call of the process fails."""
    if device.torch_device.type != "cuda":
        return True
    try:
        torch.zeros(1, device=device.torch_device).add_(1).cpu()
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
    return True


def memory_limit(
    database: Database, device: Device, experiment: Experiment, *, architecture: str, resolution: int
) -> int:
    """Largest batch size that fits the memory: read from the fleet's table, or measured here and written to it."""
    key = _key(device, experiment, architecture, resolution)

    def measure() -> int:
        if device.torch_device.type == "cuda":
            return _verified_limit(key, device, most=experiment.search.max_batch_size)
        # A real step of this size costs a CPU as much as an epoch; a trial that runs out of memory retries at half.
        return largest_batch(_step_memory(key, device), device.memory_budget_bytes)

    return find_or_measure(database, key, measure)


def _verified_limit(key: FeasibleBatchKey, device: Device, *, most: int) -> int:
    """Largest batch size whose real step fits; the estimate, if larger, where all that a trial may run fits."""
    _refuse_if_held(device)
    fit = probe_batch(
        key.architecture,
        input_size=key.input_size,
        precision=key.precision,
        device=device.torch_device,
        budget_bytes=device.memory_budget_bytes,
        most=most,
    )
    torch.cuda.empty_cache()
    _refuse_if_held(device)
    if fit.verified < most // 8 * 8:
        return fit.verified
    return max(fit.verified, largest_batch(_step_memory(key, device), device.memory_budget_bytes))


def _refuse_if_held(device: Device) -> None:
    """UsageError where other programs hold the share: the fleet would keep the smaller limit measured beside them."""
    held = held_by_others(device)
    if held:
        raise UsageError(held)


def held_by_others(device: Device) -> str | None:
    """An error message where other programs hold much of this worker's share of a GPU; None where they do not."""
    if device.torch_device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device.torch_device)
    available = free + torch.cuda.memory_reserved(device.torch_device)
    share = min(device.memory_budget_bytes, total // device.workers)  # the budget may exceed this GPU's memory
    if available >= _MOST_OF_IT * share:
        return None
    return (
        f"{device.name} has {format_bytes(available)} free of the {format_bytes(share)} that are this worker's "
        "share: another program holds the rest. Free it, start fewer workers there, or lower workers.memory_budget_gib"
    )


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
        channels_last=is_channels_last(device.torch_device, training.precision),
        torch_version=torch.__version__,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}"


def limit_memory(device: Device) -> None:
    """Make allocations beyond this worker's share fail; otherwise Linux kills the process, or another worker's fail.

    A GPU's share is the budget for steps plus the memory for images.
    """
    if device.torch_device.type != "cpu":
        share = device.memory_budget_bytes + resident_image_bytes(device.torch_device, workers=device.workers)
        total = torch.cuda.get_device_properties(device.torch_device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share / total), device.torch_device)
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = process_memory_bytes("VmData") + device.memory_budget_bytes + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def resident_bytes() -> int:
    """Resident memory of this process."""
    return process_memory_bytes("VmRSS")
