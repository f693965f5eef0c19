"""A worker's share of a device: its memory budget, its limit, and whether it still computes."""

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from acuity.objectives.device.memory import process_memory_bytes
from acuity.objectives.errors import InputError

GIB = 2**30
# Of a GPU: the driver's context, cuDNN's workspaces and fragmentation take what is left over by these two.
CUDA_STEP_SHARE = 0.65
CUDA_IMAGE_SHARE = 0.25
# Of a machine or container: the operating system, the database and the page cache of the images take the rest.
CPU_SHARE = 0.8
# Python with torch, timm, pandas and optuna loaded holds 0.7 GiB before the first step.
CPU_RESERVE_BYTES = 1 * GIB
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
        raise InputError(f"device {choice} cannot be used here ({reason}); use --device cpu or another one") from None
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
        f"{device.name} has {available / GIB:.1f} GiB free of the {share / GIB:.1f} GiB that are this worker's "
        "share: another program holds the rest. Free it, start fewer workers there, or lower workers.memory_budget_gib"
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


def memory_budget(device: torch.device, *, workers: int, memory_gib: float | None = None) -> int:
    """Bytes that one of the device's (on a CPU: the machine's) workers may use for its training step.

    memory_gib is that very number, set by the user. Otherwise the device's memory is shared out: on a CPU the
    container's limit or the machine's memory, less what the interpreter itself holds.
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * CUDA_STEP_SHARE / workers)
    budget = int(_cpu_memory_bytes() * CPU_SHARE / workers) - CPU_RESERVE_BYTES
    if budget <= 0:
        raise InputError(
            f"{_cpu_memory_bytes() / GIB:.1f} GiB of memory are too few for {workers} workers, each needs "
            f"{CPU_RESERVE_BYTES / GIB / CPU_SHARE:.2f} GiB before its first batch: launch fewer or set memory_gib"
        )
    return budget


def resident_image_bytes(device: torch.device, *, workers: int) -> int:
    """Bytes of a GPU that one of its workers may fill with images, beside its training step."""
    return int(torch.cuda.get_device_properties(device).total_memory * CUDA_IMAGE_SHARE / workers)


def _cpu_memory_bytes(root: Path = Path("/")) -> int:
    """The smallest of the machine's memory and the limits of the control groups (v1 and v2) this process is in."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, file = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        # A container may see its host's path but only its own part of the tree, so every level up to the mount counts.
        for level in (Path(group.lstrip("/")), *Path(group.lstrip("/")).parents):
            limit = root / mount / level / file
            text = limit.read_text().strip() if limit.is_file() else "max"
            limits += [int(text)] if text.isdigit() else []
    return min(limits)
