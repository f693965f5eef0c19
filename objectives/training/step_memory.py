"""The largest batch whose training step fits the memory budget, estimated without touching the device."""

import functools
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from acuity.objectives.errors import InputError
from acuity.objectives.training.network import make_network

# Beside what autograd saves, a step holds gradients of activations, temporaries of single layers, and on a CPU what
# glibc's allocator keeps back. Real steps on a CPU (ten networks from test_resnet to vit_small, 64 to 224 px) took 0.81
# to 1.18 of the saved bytes, with large blocks returned at once (objectives/allocator.py).
TEMPORARIES = {"cpu": 1.2, "cuda": 1.07}
PROBED_BATCH = 64  # what is saved once a batch (statistics of norms) is lost in it


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
