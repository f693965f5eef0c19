"""The largest batch whose training step fits the memory budget, estimated without touching the device."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from objectives.errors import InputError
from objectives.network import make_network

GIB = 2**30
# Beside what autograd saves, a step holds gradients of activations, temporaries of single layers, and on a CPU what
# glibc's allocator keeps back. Real steps on a CPU (ten networks from test_resnet to vit_small, 64 to 224 px) took 0.81
# to 1.18 of the saved bytes, with large blocks returned at once (objectives/allocator.py).
TEMPORARIES = {"cpu": 1.2, "cuda": 1.07}
PROBED_BATCH = 64  # what is saved once a batch (statistics of norms) is lost in it
# Of a GPU: the driver's context, cuDNN's workspaces and fragmentation take what is left over by these two.
CUDA_STEP_SHARE = 0.65
CUDA_IMAGE_SHARE = 0.25
# Of a machine or container: the operating system, the database and the page cache of the images take the rest.
CPU_SHARE = 0.8
# Python with torch, timm, pandas and optuna loaded holds 0.7 GiB before the first step.
CPU_RESERVE_BYTES = 1 * GIB


@dataclass(frozen=True)
class StepMemory:
    """What one training step takes: fixed_bytes + batch * bytes_per_image."""

    fixed_bytes: int
    bytes_per_image: float


@dataclass(frozen=True)
class FeasibleBatch:
    """The largest batch a trial may run and the cap that set it: memory, max_batch_size or min_updates_per_epoch."""

    size: int
    cap: str


@functools.cache
def estimate_step_memory(architecture: str, *, input_size: int, precision: str, device_type: str = "cpu") -> StepMemory:
    """Bytes of a training step (forward, backward, AdamW), from a forward pass over tensors that hold no data.

    input_size: pixels a side of what the network sees (network_input where that is set, else the resolution).
    precision: "fp32" or "bf16" (autocast). device_type: "cpu" or "cuda", whose kernels save different things.
    """
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
    # Fake tensors rather than bare meta ones: autocast and the choice of attention kernel need a device to go by
    # (vit_small at 224 px: 56 MiB a sample as on the device, 67 on meta).
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device=device_type)
        try:
            saved = _saved_bytes(network, input_size=input_size, precision=precision, device_type=device_type)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                f"architecture {architecture} does not take images of {input_size} px ({reason}): "
                "choose another resolution, or network_input"
            ) from error
    parameters = sum(p.nbytes for p in network.parameters())
    weight_copies = parameters // 2 if precision == "bf16" else 0  # autocast's, kept for the backward pass
    return StepMemory(
        fixed_bytes=4 * parameters + sum(b.nbytes for b in network.buffers()) + weight_copies,  # AdamW keeps two more
        bytes_per_image=TEMPORARIES[device_type] * (saved - weight_copies) / PROBED_BATCH,
    )


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


def largest_batch(memory: StepMemory, budget_bytes: int) -> int:
    """Largest batch that fits, rounded down to a multiple of 8 (of 1 below 8); 0 if not even 2 fit.

    Batch normalisation has no variance to go by in a batch of one.
    """
    return _round_down(int((budget_bytes - memory.fixed_bytes) // memory.bytes_per_image))


def cap_batch(largest: int, *, training_images: int, max_batch_size: int, min_updates_per_epoch: int) -> FeasibleBatch:
    """What remains of the largest batch in memory once an epoch must have its optimiser steps."""
    by_updates = _round_down(training_images // min_updates_per_epoch)
    if by_updates == 0:
        raise InputError(
            f"{training_images} training images give no {min_updates_per_epoch} batches of at least 2 an epoch: "
            "add images or lower min_updates_per_epoch"
        )
    caps = {"memory": largest, "max_batch_size": _round_down(max_batch_size), "min_updates_per_epoch": by_updates}
    cap = min(caps, key=lambda name: caps[name])
    return FeasibleBatch(size=caps[cap], cap=cap)


def _round_down(batch: int) -> int:
    if batch >= 8:
        return batch // 8 * 8
    return batch if batch >= 2 else 0


def _saved_bytes(network: torch.nn.Module, *, input_size: int, precision: str, device_type: str) -> int:
    """Bytes that autograd keeps for a batch's backward pass, each storage once, the network's parameters left out."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive: a freed one's address is used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    images = torch.empty(PROBED_BATCH, 1, input_size, input_size, device=device_type)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        logits = network(images)
    if logits.shape != (PROBED_BATCH, 1):
        raise ValueError(f"gives {tuple(logits.shape)} for {PROBED_BATCH} images, not one logit each")
    return sum(storage.nbytes() for storage in saved.values())


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
