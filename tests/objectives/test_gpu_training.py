"""Training, loaders, checkpoints and batch probes on a stand-in GPU, and what depends on a GPU's errors."""

import dataclasses
import io
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from acuity.objectives.device.device import limit_memory, open_device
from acuity.objectives.device.memory import MIB
from acuity.objectives.errors import InputError
from acuity.objectives.training import batch_probe, checkpoint, step_memory
from acuity.objectives.training import train as train_module
from acuity.objectives.training.batch_probe import probe_batch
from acuity.objectives.training.checkpoint import checkpoint_from_bytes
from acuity.objectives.training.interface import Hyperparameters, LabelledImages, Outcome
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import open_loaders
from acuity.objectives.training.prediction import compute_logits, load_network, make_predictor
from acuity.objectives.training.step_memory import (
    StepMemory,
    cap_batch,
    estimate_step_memory,
    largest_batch,
    largest_countable_batch,
)
from acuity.objectives.training.train import train
from support.standin_gpu import standin_gpu
from support.threads import one_thread

GIB = 2**30
CPU = torch.device("cpu")
BASE = Hyperparameters("test_resnet", resolution=32, batch_size=16, learning_rate=1e-2, epochs=2)
LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def gpu() -> Iterator[None]:
    with one_thread(), standin_gpu(devices=1, total_memory=4 * GIB):
        yield


def some_images(count: int = 60) -> LabelledImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 32, 32)).astype(np.uint8)
    targets = (np.arange(count) % 3 == 0).astype(np.float32)
    rows = np.arange(count)
    return LabelledImages(pixels, targets, rows, training=rows[:40], validation=rows[40:])


def run(device: torch.device, **options: Any) -> Outcome:
    options = {"report": lambda *_: False} | options
    return train(options.pop("hyperparameters", BASE), some_images(), seed=1, device=device, **options)


def raise_error(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.standin
def test_images_are_streamed_without_a_context_on_another_gpu() -> None:
    images = some_images().images
    with standin_gpu(devices=2, total_memory=4 * GIB) as state:
        device = open_device("cuda:1", workers=1).torch_device
        (loader,) = open_loaders(images, np.arange(60), device=device, image_budget_bytes=0)
        for batch, positions in zip(loader(torch.arange(60).split(20)), torch.arange(60).split(20), strict=True):
            np.testing.assert_array_equal(batch.squeeze(1).cpu().numpy(), images[positions.numpy()])
        assert [state.allocator.memories[number].has_context for number in (0, 1)] == [False, True]


@pytest.mark.standin
def test_thread_that_copies_images_has_the_loaders_gpu_as_its_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, int]] = []
    with standin_gpu(devices=2, total_memory=4 * GIB):
        device = open_device("cuda:1", workers=1).torch_device
        set_device = torch.cuda.set_device
        monkeypatch.setattr(
            "torch.cuda.set_device",
            lambda device: (chosen.append((threading.current_thread().name, device.index)), set_device(device)),
        )
        (loader,) = open_loaders(some_images().images, np.arange(60), device=device, image_budget_bytes=0)
        list(loader(torch.arange(60).split(20)))
    assert [number for name, number in chosen if name.startswith("images")] == [1]


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
def test_loader_has_one_copy_stream_for_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cuda", workers=1).torch_device
    streams: list[torch.cuda.Stream] = []
    stream_type = torch.cuda.Stream

    def make_stream(*arguments: Any, **options: Any) -> torch.cuda.Stream:
        stream = stream_type(*arguments, **options)
        streams.extend([] if options else [stream])  # PyTorch wraps existing streams with options
        return stream

    monkeypatch.setattr("torch.cuda.Stream", make_stream)
    (loader,) = open_loaders(some_images().images, np.arange(60), device=device, image_budget_bytes=0)
    for _ in range(3):
        list(loader(torch.arange(60).split(20)))
    assert len(streams) == 1


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
def test_batch_is_verified_by_two_steps_within_the_reserved_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cuda", workers=1)
    limit_memory(device)
    steps: list[tuple[int, ...]] = []

    def watch(learner: Learner, loader: Any, *, batches: torch.Tensor, **options: Any) -> Iterator[torch.Tensor]:
        steps.append(tuple(batches.shape))
        yield from train_batches(learner, loader, batches=batches, **options)

    monkeypatch.setattr(batch_probe, "train_batches", watch)
    reserved, factor = torch.cuda.max_memory_reserved, 1.3  # an allocator that wastes memory
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda device: reserved(device) * factor)
    budget = 200 * MIB
    probe = probe_batch("test_resnet", input_size=64, precision="fp32", device=device.torch_device, budget_bytes=budget)
    assert {taken for taken, _ in steps} == {2}
    assert 0 < probe.verified < probe.estimate, "the waste counts"
    (verified,) = {batch for _, batch in steps if batch == probe.verified}
    torch.cuda.empty_cache()
    assert probe.peak_memory_mib * MIB <= budget
    learner = make_learner(dataclasses.replace(BASE, resolution=64), total_steps=9, device=device.torch_device)
    measured = batch_probe._take_steps(learner, verified, device.torch_device, held_mib=0)
    assert measured is not None
    assert measured[0] == pytest.approx(probe.peak_memory_mib, rel=0.1)


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
def test_speed_of_a_batch_is_that_of_its_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_in_first_step(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        for number, loss in enumerate(train_batches(*arguments, **options)):
            if number == 0:
                time.sleep(3)
            yield loss

    device = open_device("cuda", workers=1).torch_device
    monkeypatch.setattr(batch_probe, "train_batches", plan_in_first_step)
    probe = probe_batch(
        "test_resnet", input_size=32, precision="fp32", device=device, budget_bytes=GIB, max_batch_size=16
    )
    assert probe.verified == 16
    assert probe.images_per_second > 16 / 1.3  # a mean of both steps is below


@pytest.mark.standin
@pytest.mark.parametrize("kind", ["AcceleratorError", "cublas", "cudnn", "host", "find", "get", "driver"])
def test_probe_that_runs_out_of_memory_in_disguise_ends_below_the_limit(kind: str) -> None:
    with one_thread(), standin_gpu(total_memory=4 * GIB, out_of_memory=kind):
        device = open_device("cuda", workers=1).torch_device
        torch.cuda.set_per_process_memory_fraction(100 * MIB / (4 * GIB), device)
        probe = probe_batch(
            "test_resnet", input_size=64, precision="fp32", device=device, budget_bytes=GIB, max_batch_size=256
        )
    assert 0 < probe.verified < 128


def test_network_that_does_not_fit_has_no_feasible_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_probe, "make_learner", raise_error(FULL))
    probe = probe_batch("test_resnet", input_size=32, precision="fp32", device=CPU, budget_bytes=GIB)
    assert (probe.verified, probe.images_per_second) == (0, 0)


def saved_training(device: torch.device = CPU) -> bytes:
    """The checkpoint after the first of two epochs."""
    saved: list[bytes] = []
    run(device, save_checkpoint=saved.append, checkpoint_s=1e-9)
    return saved[0]


@pytest.mark.parametrize("error", [LOST, FULL, RuntimeError("CUDA error: out of memory"), MemoryError("no")], ids=str)
@pytest.mark.parametrize("fails", ["torch.load", "torch.nn.Module.load_state_dict"])
def test_error_of_the_gpu_is_not_a_damaged_checkpoint(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fails: str
) -> None:
    saved = saved_training()
    monkeypatch.setattr(fails, raise_error(error))
    with pytest.raises(type(error)):
        run(CPU, load_checkpoint=lambda: saved)
    with pytest.raises(type(error)):
        load_network(saved, BASE, device=CPU)


def test_damaged_checkpoint_of_a_network_is_still_an_input_error() -> None:
    with pytest.raises(InputError, match="its checkpoint is damaged"):
        load_network(b"", BASE, device=CPU)


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
def test_checkpoint_is_read_to_the_cpu_and_the_gpu_holds_one_network() -> None:
    device = open_device("cuda", workers=1).torch_device
    saved: list[bytes] = []
    held: dict[str, list[int]] = {"first": [], "resumed": []}

    def report(name: str) -> Any:
        return lambda *_: held[name].append(torch.cuda.memory_allocated(device)) and False

    whole = run(device, save_checkpoint=saved.append, checkpoint_s=1e-9, report=report("first"))
    resumed = run(device, load_checkpoint=lambda: saved[0], report=report("resumed"))
    assert resumed.resumed_epochs == 1
    np.testing.assert_allclose(resumed.scores, whole.scores, atol=1e-5)
    assert max(held["resumed"]) <= max(held["first"])
    identity = torch.load(io.BytesIO(saved[0]), weights_only=True)["identity"]
    restored = checkpoint_from_bytes(saved[0], identity=identity)
    assert restored is not None
    assert {tensor.device.type for tensor in restored.network.values()} == {"cpu"}


@pytest.mark.standin
@pytest.mark.usefixtures("gpu")
def test_checkpoint_is_not_copied_to_the_gpu_by_torch_load(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cuda", workers=1).torch_device
    saved = saved_training(device)
    loaded: list[Any] = []
    load = torch.load
    monkeypatch.setattr(
        checkpoint.torch,
        "load",
        lambda *args, **options: loaded.append(options["map_location"]) or load(*args, **options),
    )
    run(device, load_checkpoint=lambda: saved)
    load_network(saved, BASE, device=device)
    assert loaded == ["cpu", "cpu"]


def test_checkpoint_of_other_versions_leaves_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = saved_training()
    networks: list[Any] = []

    def make_one(*arguments: Any, **options: Any) -> Learner:
        assert all(network() is None for network in networks), "the first network is freed before the second is built"
        learner = make_learner(*arguments, **options)
        networks.append(weakref.ref(learner.network))
        return learner

    monkeypatch.setattr(train_module, "make_learner", make_one)
    monkeypatch.setattr("torch.optim.AdamW.load_state_dict", raise_error(ValueError("other groups")))
    outcome = run(CPU, load_checkpoint=lambda: saved)
    assert (len(networks), outcome.resumed_epochs) == (2, 0)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_on_a_gpu_are_in_tf32_only_where_it_is_named(precision: str) -> None:
    for before in (False, True):
        torch.backends.cudnn.allow_tf32 = before
        torch.backends.cuda.matmul.allow_tf32 = before
        make_predictor(dataclasses.replace(BASE, precision=precision), device=CPU)
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        for products in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
            assert (products.fp32_precision == "tf32") == (precision == "tf32")


def test_tf32_on_a_cpu_is_fp32() -> None:
    with one_thread():
        scores = [
            run(CPU, hyperparameters=dataclasses.replace(BASE, precision=name)).scores for name in ("tf32", "fp32")
        ]
    assert np.array_equal(*scores)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "dla34"])
def test_logits_of_a_bf16_network_have_the_resolution_of_fp32(architecture: str) -> None:
    count = 8_000 if architecture == "test_resnet" else 200
    torch.manual_seed(0)
    hyperparameters = dataclasses.replace(BASE, architecture=architecture, precision="bf16")
    predictor = make_predictor(hyperparameters, device=CPU)
    predictor.network.eval()
    images = torch.rand(count, 1, 32, 32)
    with torch.inference_mode():
        logits = torch.cat([compute_logits(predictor, part) for part in images.split(1_000)])
    assert logits.unique().numel() > 5_000 / 8_000 * count
    state = make_predictor(dataclasses.replace(hyperparameters, precision="fp32"), device=CPU).network.state_dict()
    assert state.keys() == predictor.network.state_dict().keys(), "checkpoints have the same names"


def test_largest_tensor_of_a_step_is_counted() -> None:
    # resnet34's first convolution: 64 channels at half the side.
    assert estimate_step_memory("resnet34", input_size=320, precision="fp32").elements_per_image == 64 * 160**2
    assert estimate_step_memory("resnet34", input_size=64, precision="bf16").elements_per_image == (64 * 32**2)


def test_batch_is_capped_where_a_tensor_would_have_more_than_2_to_the_31_elements() -> None:
    memory = estimate_step_memory("resnet34", input_size=448, precision="bf16")
    countable = largest_countable_batch(memory)
    assert countable * memory.elements_per_image < 2**31 <= (countable + 8) * memory.elements_per_image
    batch = cap_batch(4_096, countable=countable, training_images=10**6, max_batch_size=4_096, min_updates_per_epoch=20)
    assert (batch.size, batch.cap) == (countable, "max_elements")


def test_probe_tries_no_batch_with_too_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memory, "MAX_ELEMENTS", 20 * 64 * 16**2)
    memory = StepMemory(0, 1.0, elements_per_image=64 * 16**2)
    assert (largest_batch(memory, GIB), largest_countable_batch(memory)) == (GIB, 16)
    elements = estimate_step_memory("test_resnet", input_size=32, precision="fp32").elements_per_image
    monkeypatch.setattr(step_memory, "MAX_ELEMENTS", 20 * elements)
    probe = probe_batch("test_resnet", input_size=32, precision="fp32", device=CPU, budget_bytes=GIB)
    assert (probe.verified, probe.estimate) == (16, 16)
