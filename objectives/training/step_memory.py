"""Estimate the memory of a training step and the largest batch size that fits, without using the device."""

import functools
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from acuity.objectives.errors import InputError, first_line
from acuity.objectives.training.network import make_network

# A step also holds gradients of activations, temporary tensors of single layers, and on a CPU memory that glibc's
# allocator keeps. Real steps on a CPU (ten networks from test_resnet to vit_small, 64 to 224 px) took 0.81 to 1.18 of
# the saved bytes, with large blocks returned at once (device/allocator.py).
PEAK_PER_SAVED_BYTE = {"cpu": 1.2, "cuda": 1.07}
_TRACED_BATCH = 64  # large enough to make tensors that are saved once a batch (statistics of norms) negligible


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step: fixed_bytes + batch_size * bytes_per_image."""

    fixed_bytes: int
    bytes_per_image: float


@dataclass(frozen=True)
class FeasibleBatch:
    """The largest batch size of a trial and its cap: memory, max_batch_size or min_updates_per_epoch."""

    size: int
    cap: str


@functools.cache
def estimate_step_memory(architecture: str, *, input_size: int, precision: str, device_type: str = "cpu") -> StepMemory:
    """Bytes of a training step (forward, backward, AdamW), estimated by a forward pass of tensors without data.

    input_size: pixels a side of the network's input (network_input if set, else the resolution). precision: "fp32" or
    "bf16" (autocast). device_type: "cpu" or "cuda"; their kernels save different tensors. InputError if the network
    does not take images of this size.
    """
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
    # Fake tensors instead of meta tensors: autocast and the choice of the attention kernel depend on the device
    # (vit_small at 224 px: 56 MiB an image, as on the device; 67 with meta tensors).
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device=device_type)
        try:
            saved = _saved_bytes(network, input_size=input_size, precision=precision, device_type=device_type)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"architecture {architecture} does not take images of {input_size} px ({first_line(error)}): "
                "choose another resolution, or network_input"
            ) from error
    parameters = sum(p.nbytes for p in network.parameters())
    weight_copies = parameters // 2 if precision == "bf16" else 0  # autocast keeps them for the backward pass
    return StepMemory(
        fixed_bytes=4 * parameters
        + sum(b.nbytes for b in network.buffers())
        + weight_copies,  # weights, gradients, two of AdamW
        bytes_per_image=PEAK_PER_SAVED_BYTE[device_type] * (saved - weight_copies) / _TRACED_BATCH,
    )


def largest_batch(memory: StepMemory, budget_bytes: int) -> int:
    """Largest batch size that fits, rounded down to a multiple of 8 (of 1 below 8); 0 if 2 images do not fit.

    Batch normalisation needs at least 2 images to compute a variance.
    """
    return _round_down(int((budget_bytes - memory.fixed_bytes) // memory.bytes_per_image))


def cap_batch(largest: int, *, training_images: int, max_batch_size: int, min_updates_per_epoch: int) -> FeasibleBatch:
    """Cap the largest batch size in memory by max_batch_size and by the minimum of optimiser steps per epoch.

    InputError if there are too few images for min_updates_per_epoch batches of 2.
    """
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
    """Bytes that autograd keeps for the backward pass of a batch: each storage once, without the parameters."""
    parameters = {p.untyped_storage()._cdata for p in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive: addresses of freed storages are reused

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage
        return tensor

    images = torch.empty(_TRACED_BATCH, 1, input_size, input_size, device=device_type)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        logits = network(images)
    if logits.shape != (_TRACED_BATCH, 1):
        raise ValueError(f"gives {tuple(logits.shape)} for {_TRACED_BATCH} images, not one logit each")
    return sum(storage.nbytes() for storage in saved.values())
