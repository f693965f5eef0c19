"""Estimate the memory of a training step and the largest batch size that fits, without using the device."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acuity.objectives.errors import InputError, first_line
from acuity.objectives.training.network import make_network

# A step also holds gradients of activations, temporary tensors of single layers, and on a CPU memory that glibc's
# allocator keeps. Real steps on a CPU (ten networks from test_resnet to vit_small, 64 to 224 px) took 0.81 to 1.18 of
# the saved bytes, with large blocks returned at once (device/allocator.py).
PEAK_PER_SAVED_BYTE = {"cpu": 1.2, "cuda": 1.07}
MAX_ELEMENTS = 2**31 - 1
"""Elements of the largest tensor: many GPU kernels count them in 32 bits and fail or err beyond."""
_TRACED_BATCH = 64  # large enough to make tensors that are saved once a batch (statistics of norms) negligible


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step: fixed_bytes + batch_size * bytes_per_image."""

    fixed_bytes: int
    bytes_per_image: float
    elements_per_image: int = 1
    """Of the largest tensor of the step, divided by the batch size."""


@dataclass(frozen=True)
class FeasibleBatch:
    """The largest batch size of a trial and its cap: memory, max_elements, max_batch_size or min_updates_per_epoch."""

    size: int
    cap: str


@functools.cache
def estimate_step_memory(architecture: str, *, input_size: int, precision: str, device_type: str = "cpu") -> StepMemory:
    """Bytes of a training step (forward, backward, AdamW), estimated by a forward pass of tensors without data.

    input_size: pixels a side of the network's input (network_input if set, else the resolution). precision: "fp32",
    "tf32" or "bf16" (autocast). device_type: "cpu" or "cuda"; their kernels save different tensors. InputError if the
    network does not take images of this size.
    """
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
    # Fake tensors instead of meta tensors: autocast and the choice of the attention kernel depend on the device
    # (vit_small at 224 px: 56 MiB an image, as on the device; 67 with meta tensors).
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device=device_type)
        try:
            saved, elements = _trace(network, input_size=input_size, precision=precision, device_type=device_type)
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
        elements_per_image=elements,
    )


def largest_batch(memory: StepMemory, budget_bytes: int) -> int:
    """Largest batch size that fits, rounded down to a multiple of 8 (of 1 below 8); 0 if 2 images do not fit.

    Batch normalisation needs at least 2 images to compute a variance.
    """
    return _round_down(int((budget_bytes - memory.fixed_bytes) // memory.bytes_per_image))


def largest_countable_batch(memory: StepMemory) -> int:
    """Largest batch size with at most 2^31 - 1 elements in each tensor of the step, rounded as by `largest_batch`."""
    return _round_down(MAX_ELEMENTS // memory.elements_per_image)


def cap_batch(
    largest: int, *, countable: int | None = None, training_images: int, max_batch_size: int, min_updates_per_epoch: int
) -> FeasibleBatch:
    """Cap the largest batch size in memory by max_batch_size and by the minimum of optimiser steps per epoch.

    countable: `largest_countable_batch` of the network, or None if no tensor can have so many elements. InputError if
    there are too few images for min_updates_per_epoch batches of 2.
    """
    by_updates = _round_down(training_images // min_updates_per_epoch)
    if by_updates == 0:
        raise InputError(
            f"{training_images} training images give no {min_updates_per_epoch} batches of at least 2 an epoch: "
            "add images or lower min_updates_per_epoch"
        )
    caps = {"memory": largest, "max_batch_size": _round_down(max_batch_size), "min_updates_per_epoch": by_updates}
    if countable is not None:
        caps["max_elements"] = countable
    cap = min(caps, key=lambda name: caps[name])
    return FeasibleBatch(size=caps[cap], cap=cap)


def _round_down(batch: int) -> int:
    if batch >= 8:
        return batch // 8 * 8
    return batch if batch >= 2 else 0


class _LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def _trace(network: torch.nn.Module, *, input_size: int, precision: str, device_type: str) -> tuple[int, int]:
    """Run a batch without data; returns saved bytes of the batch and elements an image of the largest tensor.

    Saved bytes are those that autograd keeps for the backward pass: each storage once, without the parameters. The
    augmentation's grid counts as a tensor: two coordinates a pixel.
    """
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
        _LargestTensor() as largest,
    ):
        logits = network(images)
    if logits.shape != (_TRACED_BATCH, 1):
        raise ValueError(f"gives {tuple(logits.shape)} for {_TRACED_BATCH} images, not one logit each")
    elements = max(largest.elements // _TRACED_BATCH, 2 * input_size**2)
    return sum(storage.nbytes() for storage in saved.values()), elements
