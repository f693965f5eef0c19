"""Checkpoints are written in a thread, as often as promised; the last finished epoch is never lost on a request."""

import contextlib
import gc
import io
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acuity.objectives.device.device import open_device
from acuity.objectives.training import checkpoint_writer, learner, train
from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_from_bytes
from acuity.objectives.training.checkpoint_writer import CheckpointWriter
from acuity.objectives.training.interface import Hyperparameters, Interrupted, LabelledImages, Outcome
from support.standin_gpu import OrderError, standin_gpu
from support.threads import one_thread

CPU = torch.device("cpu")
BASE = Hyperparameters("test_resnet", resolution=32, batch_size=16, learning_rate=1e-2, epochs=4)
GIB = 2**30


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Disk:
    """Where the writer saves; it can fail or hang."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.error: Exception | None = None
        self.threads: list[str] = []
        self.answers = threading.Event()
        self.answers.set()

    def save(self, data: bytes) -> None:
        self.threads.append(threading.current_thread().name)
        assert self.answers.wait(30)
        if self.error is not None:
            raise self.error
        saved = checkpoint_from_bytes(data, identity="this")
        assert saved is not None
        assert saved.network["weight"][0] == len(saved.aucs), "the state is that of its epoch"
        self.epochs.append(len(saved.aucs))


class Network:
    """A training whose one weight is the number of its epochs."""

    def __init__(self) -> None:
        self.weight = torch.zeros(3)
        self.aucs: list[float] = []

    def after_an_epoch(self) -> Checkpoint:
        self.weight += 1
        self.aucs.append(0.5)
        return Checkpoint("this", list(self.aucs), 1.0, {"weight": self.weight}, {"lr": 0.1}, {})


def writer(disk: Disk, *, interval_s: float = 30.0, clock: Clock | None = None) -> CheckpointWriter:
    return CheckpointWriter(disk.save, device=CPU, interval_s=interval_s, clock=clock or Clock())


def wait(writing: CheckpointWriter) -> None:
    """Wait for the write in flight."""
    if writing._writing is not None:
        writing._writing.exception(timeout=30)


@settings(max_examples=50)
@given(
    epoch_s=st.floats(0.01, 100), interval_s=st.floats(0.1, 100), epochs=st.integers(1, 40), part=st.floats(0.01, 0.99)
)
def test_kill_repeats_at_most_one_epoch_or_the_interval(
    epoch_s: float, interval_s: float, epochs: int, part: float
) -> None:
    disk, clock, network = Disk(), Clock(), Network()
    began = clock.now
    with writer(disk, interval_s=interval_s, clock=clock) as writing:
        for epoch in range(1, epochs + 1):
            clock.now = began + epoch * epoch_s
            writing.keep(network.after_an_epoch())
            wait(writing)
            last = disk.epochs[-1] if disk.epochs else 0
            killed_at = epoch + part  # in the next epoch
            assert (killed_at - last) * epoch_s <= max(epoch_s, interval_s) * (1 + 1e-6)
    gaps = np.diff([0, *disk.epochs]) * epoch_s
    assert (gaps > interval_s / 2 - epoch_s / 2 - 1e-6).all(), "it is not written more often than that needs"
    if epoch_s < interval_s / 2:
        assert len(disk.epochs) <= 2 * epochs * epoch_s / interval_s + 1


def test_only_writes_between_epochs_run_in_the_thread() -> None:
    disk, clock, network = Disk(), Clock(), Network()
    with writer(disk, clock=clock) as writing:
        clock.now += 40
        writing.keep(network.after_an_epoch())
        wait(writing)
        writing.write_last(network.after_an_epoch())
    assert disk.epochs == [1, 2]
    between, last = disk.threads
    assert between.startswith("checkpoint")
    assert last == threading.current_thread().name


def test_training_of_one_epoch_has_no_thread() -> None:
    """The stack and the heap of a thread would take 12 MiB of a CPU worker's limit."""
    disk, network = Disk(), Network()
    before = threading.active_count()
    with writer(disk) as writing:
        writing.write_last(network.after_an_epoch())
        assert threading.active_count() == before
    assert disk.epochs == [1]


def test_epochs_that_end_during_a_write_wait_for_no_disk_and_one_write_is_in_flight() -> None:
    disk, clock, network = Disk(), Clock(), Network()
    disk.answers.clear()
    with writer(disk, interval_s=5, clock=clock) as writing:
        for _ in range(4):
            clock.now += 10
            writing.keep(network.after_an_epoch())  # returns while the disk does not answer
        assert disk.epochs == []
        disk.answers.set()
        wait(writing)
        assert disk.epochs == [1]
        clock.now += 10
        writing.keep(network.after_an_epoch())
    assert disk.epochs == [1, 5]


def test_request_to_stop_writes_the_last_epoch_after_the_write_in_flight() -> None:
    disk, clock, network = Disk(), Clock(), Network()

    def train_until_stopped() -> None:
        with writer(disk, clock=clock) as writing:
            for seconds in (40, 1, 1):
                clock.now += seconds
                writing.keep(network.after_an_epoch())
            network.weight += 0.5  # the fourth epoch has begun
            raise Interrupted

    with pytest.raises(Interrupted):
        train_until_stopped()
    assert disk.epochs == [1, 3]


def test_request_to_stop_writes_no_epoch_twice() -> None:
    disk, clock, network = Disk(), Clock(), Network()
    with pytest.raises(Interrupted), writer(disk, clock=clock) as writing:  # noqa: PT012
        clock.now += 40
        writing.keep(network.after_an_epoch())
        raise Interrupted
    assert disk.epochs == [1]


def test_error_of_the_disk_ends_the_training_after_the_next_epoch() -> None:
    disk, clock, network = Disk(), Clock(), Network()
    disk.error = OSError("No space left on device")
    with writer(disk, interval_s=5, clock=clock) as writing:
        clock.now += 10
        writing.keep(network.after_an_epoch())
        wait(writing)
        with pytest.raises(OSError, match="No space left"):
            writing.keep(network.after_an_epoch())


@pytest.mark.parametrize("end", ["last", "stopped by its report", "interrupted"])
def test_error_of_the_disk_at_the_end_is_raised(end: str) -> None:
    disk, clock, network = Disk(), Clock(), Network()
    disk.error = OSError("No space left on device")
    with pytest.raises(OSError, match="No space left"), writer(disk, clock=clock) as writing:  # noqa: PT012
        clock.now += 40
        if end == "last":
            writing.write_last(network.after_an_epoch())
        else:
            writing.keep(network.after_an_epoch())
            if end == "interrupted":
                raise Interrupted


def test_error_of_the_training_is_not_replaced_by_one_of_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    disk, clock, network = Disk(), Clock(), Network()
    disk.error = OSError("No space left on device")
    with pytest.raises(ZeroDivisionError), writer(disk, clock=clock) as writing:  # noqa: PT012
        clock.now += 40
        writing.keep(network.after_an_epoch())
        raise ZeroDivisionError
    assert "not written: No space left" in caplog.text


def test_write_that_runs_out_of_memory_is_repeated_after_the_next_epoch(caplog: pytest.LogCaptureFixture) -> None:
    disk, clock, network = Disk(), Clock(), Network()
    with writer(disk, clock=clock) as writing:
        clock.now += 40
        disk.error = MemoryError("packing")
        writing.keep(network.after_an_epoch())
        wait(writing)
        disk.error = None
        clock.now += 1
        writing.keep(network.after_an_epoch())
        wait(writing)
        assert disk.epochs == [2]
    assert "an epoch is not written: out of memory" in caplog.text


def test_last_write_that_runs_out_of_memory_is_an_error_of_the_training() -> None:
    disk, network = Disk(), Network()
    disk.error = MemoryError("packing")
    with pytest.raises(MemoryError), writer(disk) as writing:
        writing.write_last(network.after_an_epoch())


def test_last_write_that_runs_out_of_memory_leaves_no_tensor_of_the_training() -> None:
    def save(_: memoryview) -> None:
        raise MemoryError

    def fail() -> weakref.ref[torch.Tensor]:
        network = Network()
        with contextlib.suppress(MemoryError), CheckpointWriter(save, device=CPU, interval_s=30) as writing:
            writing.write_last(network.after_an_epoch())
        return weakref.ref(network.weight)

    gc.disable()  # the next training starts at once
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_cpu_without_memory_for_a_buffer_writes_every_epoch_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "spare_bytes", lambda _: 3 * 12 - 1)
    disk, network = Disk(), Network()
    with writer(disk) as writing:
        for epoch in (1, 2, 3):
            writing.keep(network.after_an_epoch())
            assert disk.epochs == list(range(1, epoch + 1))
        assert not writing._buffer


def some_images() -> LabelledImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 32, 32)).astype(np.uint8)
    targets = (np.arange(60) % 3 == 0).astype(np.float32)
    return LabelledImages(pixels, targets, np.arange(60), training=np.arange(40), validation=np.arange(40, 60))


def run(device: torch.device = CPU, **options: Any) -> Outcome:
    options = {"report": lambda *_: False, "checkpoint_s": 1e-9} | options
    return train.train(BASE, some_images(), seed=1, device=device, **options)


def epochs_of(data: bytes) -> int:
    return len(torch.load(io.BytesIO(data), weights_only=True)["aucs"])


def test_training_resumes_from_every_checkpoint_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: dict[int, bytes] = {}
    keep = CheckpointWriter.keep

    def keep_and_wait(writing: CheckpointWriter, checkpoint: Checkpoint) -> None:
        keep(writing, checkpoint)
        wait(writing)

    monkeypatch.setattr(CheckpointWriter, "keep", keep_and_wait)
    whole = run(save_checkpoint=lambda data: saved.update({epochs_of(data): data}))
    assert sorted(saved) == [1, 2, 3, 4]
    for epochs, data in saved.items():
        resumed = run(load_checkpoint=lambda data=data: data)
        assert resumed.resumed_epochs == epochs
        np.testing.assert_array_equal(resumed.scores, whole.scores)


@pytest.mark.parametrize("stop_at", range(1, 13))
def test_request_to_stop_at_any_batch_repeats_no_finished_epoch(stop_at: int) -> None:
    saved: list[bytes] = []
    reported: list[int] = []
    asked = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(
            save_checkpoint=saved.append,
            checkpoint_s=30.0,
            should_stop=lambda: next(asked) == stop_at,
            report=lambda epoch, _: reported.append(epoch) and False,
        )
    assert [epochs_of(data) for data in saved] == reported[-1:]


def test_last_checkpoint_holds_the_network_alone() -> None:
    saved: list[bytes] = []
    with pytest.raises(Interrupted):
        run(save_checkpoint=saved.append, should_stop=iter([False] * 5 + [True]).__next__)
    run(save_checkpoint=saved.append, checkpoint_s=30.0)
    during, last = (torch.load(io.BytesIO(data), weights_only=True) for data in (saved[0], saved[-1]))
    assert during["optimiser"]
    assert (last["optimiser"], last["scheduler"]) == ({}, {})
    assert last["network"].keys() == during["network"].keys()


def test_training_that_its_report_ends_writes_no_last_checkpoint() -> None:
    saved: list[bytes] = []
    assert run(save_checkpoint=saved.append, checkpoint_s=30.0, report=lambda epoch, _: epoch == 2).stopped
    assert saved == []


def test_write_error_reaches_the_training() -> None:
    def save(_: bytes) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(save_checkpoint=save)


@pytest.fixture
def gpus() -> Iterator[Any]:
    with standin_gpu(devices=2, total_memory=4 * GIB) as state:
        yield state


def trained_on_a_gpu(**options: Any) -> tuple[Outcome, list[bytes]]:
    """Two epochs on the second GPU and a request to stop in the third."""
    device = open_device("cuda:1", workers=1).torch_device
    saved: list[bytes] = []
    asked = iter(range(1, 100))
    with pytest.raises(Interrupted):  # an epoch asks 2 times in training and once in validation
        run(device, save_checkpoint=saved.append, should_stop=lambda: next(asked) == 8, **options)
    return run(device), saved


@pytest.mark.standin
@pytest.mark.parametrize("place", ["on the GPU", "on the host"])
def test_gpus_state_is_copied_in_order_and_in_the_thread(
    gpus: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "on the host":
        monkeypatch.setattr(checkpoint_writer, "spare_bytes", lambda _: 0)
    allocate, places = checkpoint_writer._allocate, []

    def noted(sources: list[torch.Tensor], *, on_cpu: bool) -> list[torch.Tensor]:
        buffer = allocate(sources, on_cpu=on_cpu)
        places.append({tensor.device.type for tensor in buffer})
        return buffer

    monkeypatch.setattr(checkpoint_writer, "_allocate", noted)
    whole, saved = trained_on_a_gpu()
    gpus.check()
    assert places[0] == ({"cuda"} if place == "on the GPU" else {"cpu"})
    assert epochs_of(saved[-1]) == 2
    device = torch.device("cuda:1")
    resumed = run(device, load_checkpoint=lambda: saved[-1])
    assert resumed.resumed_epochs == 2
    np.testing.assert_allclose(resumed.scores, whole.scores, atol=1e-5)
    assert [gpus.allocator.memories[number].has_context for number in (0, 1)] == [False, True]


@pytest.mark.standin
@pytest.mark.usefixtures("gpus")
def test_buffer_is_on_the_host_if_the_gpu_has_no_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_like = torch.empty_like

    def refuse(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        if "device" not in options and tensor.is_cuda:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty_like(tensor, **options)

    monkeypatch.setattr(checkpoint_writer.torch, "empty_like", refuse)
    _, saved = trained_on_a_gpu()
    assert epochs_of(saved[-1]) == 2


def learner_on_a_gpu() -> learner.Learner:
    device = open_device("cuda:0", workers=1).torch_device
    torch.manual_seed(0)
    made = learner.make_learner(BASE, total_steps=4, device=device)
    for parameter in made.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimiser.step()
    return made


def state_of(made: learner.Learner) -> Checkpoint:
    optimiser, scheduler = made.optimiser.state_dict(), made.scheduler.state_dict()
    return Checkpoint("this", [0.5], 1.0, made.network.state_dict(), optimiser, scheduler)


@pytest.mark.standin
@pytest.mark.usefixtures("gpus")
def test_training_waits_for_no_copy_to_the_host_after_an_epoch() -> None:
    made = learner_on_a_gpu()
    with CheckpointWriter(lambda _: None, device=made.device, interval_s=30.0) as writing:
        torch.cuda.set_sync_debug_mode("error")
        writing.keep(state_of(made))
        torch.cuda.set_sync_debug_mode("default")
        assert {tensor.device for tensor in writing._buffer} == {made.device}


@pytest.mark.standin
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("waits", [True, False])
def test_thread_waits_for_the_event_of_the_buffer(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner_on_a_gpu()
    if not waits:
        monkeypatch.setattr(torch.cuda.Stream, "wait_event", lambda *_: None)
    saved: list[bytes] = []
    with (
        contextlib.nullcontext() if waits else pytest.raises(OrderError),
        CheckpointWriter(saved.append, device=made.device, interval_s=1e-9) as writing,
    ):
        writing.keep(state_of(made))
    assert len(saved) == waits
