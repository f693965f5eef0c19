"""A worker's share of a device: its memory budget, its memory limit, and checks that the device is usable."""

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from acuity.objectives.device.memory import process_memory_bytes
from acuity.objectives.errors import InputError, first_line

GIB = 2**30
# The remaining 0.10 of a GPU is for the driver's contexts, cuDNN's workspaces and fragmentation.
CUDA_STEP_SHARE = 0.65
CUDA_IMAGE_SHARE = 0.25
# The rest of a machine or container is for the operating system, the database and the page cache of the images.
CPU_SHARE = 0.8
# Python with torch, timm, pandas and optuna loaded holds 0.7 GiB before the first step.
CPU_RESERVE_BYTES = 1 * GIB
_MIN_FREE_FRACTION = 0.75
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
    """Open a device ("auto", "cpu", "cuda" or "cuda:1") that is shared by this number of workers.

    threads: of this worker on the CPU; by default an equal share of the cores. InputError if the device is unusable or
    has too little memory.
    """
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(choice)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {choice} cannot be used here ({first_line(error)}); use --device cpu or another one"
        ) from None
    num_threads = threads or max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(num_threads)
    return Device(
        torch_device=device,
        name=_device_name(device),
        threads=num_threads,
        memory_budget_bytes=memory_budget(device, workers=workers, memory_gib=memory_budget_gib),
        workers=workers,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}"


def memory_budget(device: torch.device, *, workers: int, memory_gib: float | None = None) -> int:
    """Bytes of the device (on a CPU: of the machine) that each of its workers may use for training steps.

    memory_gib sets the budget of a worker. By default the workers share the memory of the GPU equally, or on a CPU the
    memory of the machine or container, less a reserve for the interpreter of each. InputError if nothing is left.
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * CUDA_STEP_SHARE / workers)
    memory_bytes = _cpu_memory_bytes()
    budget = int(memory_bytes * CPU_SHARE / workers) - CPU_RESERVE_BYTES
    if budget <= 0:
        raise InputError(
            f"{memory_bytes / GIB:.1f} GiB of memory are too few for {workers} workers, each needs "
            f"{CPU_RESERVE_BYTES / GIB / CPU_SHARE:.2f} GiB before its first batch: launch fewer or set memory_gib"
        )
    return budget


def image_memory_budget(device: torch.device, *, workers: int) -> int:
    """Bytes of a GPU that each of its workers may fill with images, in addition to its training steps."""
    return int(torch.cuda.get_device_properties(device).total_memory * CUDA_IMAGE_SHARE / workers)


def _cpu_memory_bytes(root: Path = Path("/")) -> int:
    """The smallest of the machine's memory and the limits of this process's control groups (v1 and v2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, file = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        # A container may see its host's path but only a part of the host's tree, so every level up to the mount counts.
        for level in (Path(group.lstrip("/")), *Path(group.lstrip("/")).parents):
            limit = root / mount / level / file
            text = limit.read_text().strip() if limit.is_file() else "max"
            limits += [int(text)] if text.isdigit() else []
    return min(limits)


def limit_memory(device: Device) -> None:
    """Make allocations beyond this worker's share fail.

    Otherwise Linux kills the process, or allocations of another worker fail. On a GPU the share is the budget for
    training steps plus the budget for images.
    """
    if device.torch_device.type != "cpu":
        share = device.memory_budget_bytes + image_memory_budget(device.torch_device, workers=device.workers)
        total = torch.cuda.get_device_properties(device.torch_device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share / total), device.torch_device)
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = process_memory_bytes("VmData") + device.memory_budget_bytes + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


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


def memory_shortage(device: Device) -> str | None:
    """An error message if other programs hold much of this worker's share of a GPU; otherwise None."""
    if device.torch_device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device.torch_device)
    available = free + torch.cuda.memory_reserved(device.torch_device)
    share = min(device.memory_budget_bytes, total // device.workers)  # the budget may exceed this GPU's memory
    if available >= _MIN_FREE_FRACTION * share:
        return None
    return (
        f"{device.name} has {available / GIB:.1f} GiB free of the {share / GIB:.1f} GiB that are this worker's "
        "share: another program holds the rest. Free it, start fewer workers there, or lower workers.memory_budget_gib"
    )
