"""Workers of one host that see the same GPUs distribute themselves over them, in any container."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acuity.objectives.device.gpu_lock import choose_device, lock_gpu
from acuity.objectives.errors import InputError

GPUS = ["GPU-a", "GPU-b", "GPU-c"]


def hold_one(gpus: list[str], folder: Path, connection: Connection) -> None:
    connection.send(gpus[lock_gpu(gpus, folder=folder)])
    connection.recv()


@contextmanager
def holder(gpus: list[str], folder: Path) -> Iterator[str]:
    """Another process holds a GPU during the block; yields the GPU's name."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold_one, args=(gpus, folder, there))
    process.start()
    yield here.recv()
    process.kill()
    process.join()


def test_each_worker_gets_a_separate_gpu_before_any_is_shared(tmp_path: Path) -> None:
    with holder(GPUS, tmp_path) as first, holder(GPUS, tmp_path) as second, holder(GPUS, tmp_path) as third:
        assert {first, second, third} == set(GPUS)
        with holder(GPUS, tmp_path) as fourth, holder(GPUS, tmp_path) as fifth:
            assert fourth != fifth


def test_gpu_of_a_killed_worker_is_free_again(tmp_path: Path) -> None:
    with holder(GPUS[:2], tmp_path) as first:
        with holder(GPUS[:2], tmp_path) as killed:
            assert killed != first
        with holder(GPUS[:2], tmp_path) as after:
            assert after == killed


def test_gpu_is_locked_by_uuid_because_containers_number_gpus_differently(tmp_path: Path) -> None:
    with holder(["GPU-a", "GPU-b"], tmp_path) as first, holder(["GPU-a", "GPU-b"][::-1], tmp_path) as second:
        assert first != second


def test_named_device_is_not_replaced(tmp_path: Path) -> None:
    assert choose_device("cuda:1", folder=tmp_path) == "cuda:1"
    assert choose_device("cpu", folder=tmp_path) == "cpu"
    assert not list(tmp_path.iterdir())


def test_auto_chooses_the_free_gpu_if_there_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(GPUS))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=GPUS[number]))
    with holder(GPUS[1:], tmp_path), holder(GPUS[:1], tmp_path):
        assert choose_device("auto", folder=tmp_path) == "cuda:2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto", folder=tmp_path) == "auto"


def test_folder_that_cannot_hold_locks_is_named_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Name the GPU with --device"):
        lock_gpu(GPUS, folder=tmp_path / "file" / "gpus")
