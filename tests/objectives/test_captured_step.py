"""A captured training step gives the weights of an uncaptured one, and what cannot be captured trains without."""

import contextlib
import dataclasses
import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from acuity.objectives.device.device import open_device
from acuity.objectives.training import captured_step
from acuity.objectives.training.captured_step import capture_training, replay_batches
from acuity.objectives.training.interface import Diverged, Hyperparameters, LabelledImages, Outcome
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
    options = {"report": lambda *_: False, "save_checkpoint": saved.append, "checkpoint_s": 1e-9} | options
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
        finite = [value.item() for value in replay_batches(step, batches=batches, augmentation=augmentation)]
        assert finite == [True] * steps
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
    check_equal_weights(architecture, precision, 1e-4 if precision == "fp32" else 0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["resnet10t", "efficientnet_b0"])
def test_captured_and_eager_steps_give_the_same_weights_on_a_gpu(architecture: str) -> None:
    check_equal_weights(architecture, "fp32", 2e-3)


@pytest.mark.standin
def test_number_that_changes_after_the_capture_has_no_effect_in_a_graph(gpu: State) -> None:
    """The stand-in does what a GPU does: otherwise the tests above would pass with a frozen number."""
    total, rate = torch.zeros((), device="cuda"), 1.0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total.add_(rate)
    assert total.item() == 0, "a capture computes nothing"
    rate = 100.0
    for _ in range(3):
        graph.replay()
    assert (total.item(), gpu.replays) == (3, 3)


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
def test_capture_that_waits_for_the_gpu_fails() -> None:
    value = torch.ones((), device="cuda")
    for wait in (value.item, value.cpu, torch.cuda.synchronize, lambda: value.copy_(torch.ones(()))):
        with pytest.raises(RuntimeError, match=r"capturing|during capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            wait()
    assert value.item() == 1


@pytest.mark.standin
def test_frozen_beta1_would_be_found(gpu: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """One-cycle moves beta1; with the factors of the first step the weights differ."""
    factors = captured_step._factors
    monkeypatch.setattr(
        captured_step, "_factors", lambda learner, *, steps: factors(learner, steps=steps)[:1].repeat(steps, 1)
    )
    with pytest.raises(AssertionError, match="weight"):
        check_equal_weights("test_resnet", "fp32", 1e-4)
    assert gpu.replays == 10


@pytest.mark.standin
def test_captured_training_equals_an_eager_one_and_starts_a_step_by_one_launch(gpu: State) -> None:
    eager, _ = run(capture_steps=False)
    assert gpu.replays == 0
    waits: list[int] = []
    captured, _ = run(capture_steps=True, should_stop=lambda: bool(waits.append(sum(gpu.counts.values()))))
    np.testing.assert_allclose(captured.scores, eager.scores, atol=1e-3)
    assert gpu.replays == 3 * (50 // 8)
    epoch = waits[: 50 // 8]
    assert len(set(epoch)) == 1, "the host waits for no step"


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
def test_checkpoint_of_a_captured_training_continues_captured_or_not(first: bool, second: bool) -> None:
    whole, _ = run(capture_steps=False)
    _, saved = run(capture_steps=first)
    resumed, _ = run(capture_steps=second, load_checkpoint=lambda: saved[0])
    assert resumed.resumed_epochs == 1
    np.testing.assert_allclose(resumed.scores, whole.scores, atol=1e-3)


@pytest.mark.standin
@pytest.mark.parametrize(
    ("setting", "options", "reason"),
    [
        (True, {"image_budget_bytes": 0}, "the images do not fit the GPU's memory for images"),
        ("auto", {"image_budget_bytes": 0}, None),
        ("auto", {}, None),  # 18 steps are too few
        (False, {}, None),
    ],
)
def test_training_that_is_not_captured_says_why_if_it_was_asked_for(
    gpu: State, caplog: pytest.LogCaptureFixture, setting: Any, options: dict[str, Any], reason: str | None
) -> None:
    run(capture_steps=setting, hyperparameters=dataclasses.replace(BASE, epochs=1), **options)
    assert gpu.replays == 0
    lines = [record.message for record in caplog.records]
    assert lines == ([f"training steps are not captured as a CUDA graph: {reason}"] if reason else [])


@pytest.mark.standin
def test_auto_captures_small_batches_of_long_trainings(gpu: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_step, "_MIN_STEPS", 18)
    run(capture_steps="auto")
    assert gpu.replays == 18
    monkeypatch.setattr(captured_step, "_MAX_PIXELS", 8 * 32**2 - 1)
    run(capture_steps="auto")
    assert gpu.replays == 18


@pytest.mark.standin
@pytest.mark.parametrize("phase", ["warm-up", "capture"])
def test_step_that_cannot_be_captured_trains_without_and_logs_one_line(
    gpu: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, phase: str
) -> None:
    def wait_for_the_gpu(learner: Any, stored: torch.Tensor, *rest: Any) -> torch.Tensor:
        loss = batch_loss(learner, stored, *rest)
        if phase == "warm-up":
            raise ValueError("no such step\nmore")
        loss.item()
        return loss

    eager, _ = run(capture_steps=False)
    batch_loss = captured_step.batch_loss
    monkeypatch.setattr(captured_step, "batch_loss", wait_for_the_gpu)
    with caplog.at_level(logging.WARNING):
        outcome, _ = run(capture_steps=True)
    assert gpu.replays == 0
    (line,) = [record.message for record in caplog.records]
    reason = "no such step" if phase == "warm-up" else "CUDA error: operation not permitted when stream is capturing"
    assert line.startswith(f"training steps are not captured as a CUDA graph: {reason}")
    assert "\n" not in line
    assert np.array_equal(outcome.scores, eager.scores), "the attempt has changed nothing"


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("phase", ["_warm_up", "_capture"])
def test_out_of_memory_in_a_capture_is_out_of_memory_of_the_training(
    monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(captured_step, phase, fail)
    with pytest.raises(torch.OutOfMemoryError):
        run(capture_steps=True)


@pytest.mark.standin
@pytest.mark.parametrize(
    ("call", "failure"), [(2, torch.OutOfMemoryError), (4, torch.OutOfMemoryError), (2, ValueError), (4, ValueError)]
)
def test_failed_capture_leaves_no_tensor_of_its_steps(
    gpu: State, monkeypatch: pytest.MonkeyPatch, call: int, failure: type[Exception]
) -> None:
    """The first three losses are those of the warm-up."""
    batch_loss = captured_step.batch_loss
    losses: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []

    def fail(*arguments: Any) -> torch.Tensor:
        loss = batch_loss(*arguments)
        losses.append(weakref.ref(loss))
        if len(losses) == call:
            raise failure("no")
        return loss

    monkeypatch.setattr(captured_step, "batch_loss", fail)
    gc.disable()  # the next step, or the training with half the batch, starts at once
    try:
        with contextlib.suppress(torch.OutOfMemoryError):
            run(capture_steps=True, report=lambda *_: bool(left.append(losses[-1]() is not None)))
        assert len(losses) == call
        assert losses[-1]() is None
        assert left == ([] if failure is torch.OutOfMemoryError else [False] * 3), "the epochs after it"
        gpu.check()
    finally:
        gc.enable()


@pytest.mark.standin
def test_divergence_is_found_after_a_captured_epoch(gpu: State) -> None:
    with pytest.raises(Diverged, match="in epoch 1"):
        run(capture_steps=True, hyperparameters=dataclasses.replace(BASE, learning_rate=1e30, weight_decay=0.0))
    assert gpu.replays == 6


@pytest.mark.gpu
def test_captured_training_on_a_gpu_equals_an_eager_one() -> None:
    eager, _ = run(capture_steps=False)
    captured, _ = run(capture_steps=True)
    np.testing.assert_allclose(captured.scores, eager.scores, atol=0.02)
