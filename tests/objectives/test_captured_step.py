"""A captured training step gives the weights of an uncaptured one, and what cannot be captured trains without."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from acuity.objectives.device.device import open_device
from acuity.objectives.training import captured_step
from acuity.objectives.training.captured_step import capture_training, replay_batches
from acuity.objectives.training.interface import Hyperparameters, LabelledImages, Outcome
from acuity.objectives.training.learner import make_learner, train_batches
from acuity.objectives.training.loader import open_loaders
from acuity.objectives.training.train import train
from support.standin_gpu import State, standin_gpu
from support.threads import one_thread

GIB = 2**30
BASE = Hyperparameters("test_resnet", resolution=32, batch_size=8, learning_rate=1e-2, epochs=3)


@pytest.fixture
def gpu() -> Iterator[State]:
    with one_thread(), standin_gpu(devices=1, total_memory=8 * GIB) as state:
        yield state


def some_images(count: int = 70) -> LabelledImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 32, 32)).astype(np.uint8)
    targets = (np.arange(count) % 3 == 0).astype(np.float32)
    rows = np.arange(count)
    return LabelledImages(pixels, targets, rows, training=rows[:50], validation=rows[50:])


def run(*, hyperparameters: Hyperparameters = BASE, **options: Any) -> tuple[Outcome, list[bytes]]:
    saved: list[bytes] = []
    options = {"report": lambda *_: False, "save_checkpoint": saved.append} | options
    device = open_device("cuda", workers=1).torch_device
    return train(hyperparameters, some_images(), seed=1, device=device, **options), saved


def weights_after_an_epoch(
    *, captured: bool, architecture: str = "test_resnet", precision: str = "fp32", steps: int = 10
) -> dict[str, torch.Tensor]:
    """Network and optimiser after one epoch of a training of two."""
    device = open_device("cuda", workers=1).torch_device
    data, batch = some_images(8 * steps), 8
    settings = dataclasses.replace(BASE, architecture=architecture, precision=precision)
    torch.manual_seed(3)
    learner = make_learner(settings, total_steps=2 * steps, device=device)
    (loader,) = open_loaders(data.images, np.arange(8 * steps), device=device)
    targets = torch.from_numpy(data.targets)
    batches = torch.randperm(8 * steps, generator=torch.Generator().manual_seed(4)).view(steps, batch)
    augmentation = torch.rand(8 * steps, 6, generator=torch.Generator().manual_seed(5)) * 2 - 1
    if captured:
        step = capture_training(
            learner,
            loader,
            setting=True,
            targets=targets,
            batch_shape=(steps, batch),
            epochs=1,
            augment=True,
            positive_weight=2.0,
        )
        assert step is not None
        torch.manual_seed(6)
        assert all([bool(finite) for finite in replay_batches(step, batches=batches, augmentation=augmentation)])
    else:
        torch.manual_seed(6)
        here = targets.to(device)
        list(
            train_batches(
                learner, loader, targets=here, batches=batches, augmentation=augmentation, positive_weight=2.0
            )
        )
    assert learner.scheduler.last_epoch == steps
    state = {name: tensor.cpu() for name, tensor in learner.network.state_dict().items()}
    for number, tensors in learner.optimiser.state_dict()["state"].items():
        state |= {f"{number}.{name}": tensor.cpu() for name, tensor in tensors.items()}
    return state


def check_equal_weights(architecture: str, precision: str, tolerance: float) -> None:
    eager = weights_after_an_epoch(captured=False, architecture=architecture, precision=precision)
    captured = weights_after_an_epoch(captured=True, architecture=architecture, precision=precision)
    assert eager.keys() == captured.keys()
    for name, expected in eager.items():
        torch.testing.assert_close(captured[name], expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_captured_and_eager_steps_give_the_same_weights_after_an_epoch(architecture: str, precision: str) -> None:
    check_equal_weights(architecture, precision, 1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["resnet10t", "efficientnet_b0"])
def test_captured_and_eager_steps_give_the_same_weights_on_a_gpu(architecture: str) -> None:
    check_equal_weights(architecture, "fp32", 2e-3)
