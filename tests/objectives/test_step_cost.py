"""What a training step costs besides the network: operations that the host starts, and waits of the host."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acuity.objectives.device.device import open_device
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import open_loaders
from acuity.objectives.training.prediction import predict_batches
from support.standin_gpu import standin_gpu
from support.threads import one_thread

GIB = 2**30
CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 32, 32), dtype=np.uint8)
# Of shape and place in memory alone: no kernel runs.
VIEWS = {"view", "select", "unsqueeze", "squeeze", "detach", "expand", "slice", "t", "_unsafe_view", "alias", "unbind"}
VIEWS |= {"as_strided", "split", "transpose", "permute", "lift_fresh"}


class Count(TorchDispatchMode):
    """Counts operations that run kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS and not name.startswith("_record_function"):
            self.operations.append(name)
        return func(*args, **(kwargs or {}))


def learner_on(device: torch.device, *, precision: str = "fp32") -> Learner:
    settings = Hyperparameters("test_resnet", 32, batch_size=8, learning_rate=1e-3, epochs=1, precision=precision)
    return make_learner(settings, total_steps=100, device=device)


def take_steps(learner: Learner, steps: int) -> Any:
    (loader,) = open_loaders(IMAGES, np.arange(64), device=learner.device)
    return train_batches(
        learner,
        loader,
        targets=(torch.arange(64) % 2).float().to(learner.device),
        batches=torch.arange(8 * steps).view(steps, 8),
        augmentation=draw_augmentation(64, generator=torch.Generator().manual_seed(0)),
        positive_weight=2.0,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_has_less_than_40_operations_more_than_the_network_alone(precision: str) -> None:
    learner = learner_on(CPU, precision=precision)
    steps = take_steps(learner, 3)
    next(steps)  # the first step creates the optimiser's state
    with Count() as step:
        next(steps)
    images = torch.rand(8, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    with Count() as alone, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        learner.network(images).sum().backward()
    surplus = len(step.operations) - len(alone.operations)
    assert 0 < surplus < 40, step.operations


@pytest.mark.standin
@pytest.mark.parametrize("image_budget_bytes", [None, 0], ids=["resident", "streamed"])
def test_host_waits_for_no_training_step_and_no_batch_of_predictions(image_budget_bytes: int | None) -> None:
    with one_thread(), standin_gpu(devices=1, total_memory=8 * GIB) as state:
        learner = learner_on(open_device("cuda", workers=1).torch_device)
        (loader,) = open_loaders(IMAGES, np.arange(64), device=learner.device, image_budget_bytes=image_budget_bytes)
        options = {
            "targets": torch.ones(64, device=learner.device),
            "batches": torch.arange(64).view(8, 8),
            "augmentation": draw_augmentation(64, generator=torch.Generator().manual_seed(0)),
            "positive_weight": 2.0,
        }
        waits = [sum(state.counts.values()) for _ in train_batches(learner, loader, **options)]
        assert len(waits) == 8
        assert len(set(waits)) == 1, state.counts
        waits = [sum(state.counts.values()) for _ in predict_batches(learner, loader, num_images=64)]
        assert len(set(waits)) == 1, state.counts


@pytest.mark.standin
@pytest.mark.parametrize(("batch_size", "pixels"), [(8, 2**21), (512, 2**23), (4096, 2**24)])
def test_predictions_on_a_gpu_have_larger_batches(batch_size: int, pixels: int) -> None:
    settings = Hyperparameters("test_resnet", 64, batch_size=batch_size, learning_rate=1e-3, epochs=1)
    assert make_learner(settings, total_steps=9, device=CPU).batch_pixels == 2**21
    with standin_gpu(devices=1):
        device = open_device("cuda", workers=1).torch_device
        assert make_learner(settings, total_steps=9, device=device).batch_pixels == pixels
