"""Workers of one host that see the same GPUs spread over them, whatever container each is in."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acuity.objectives.device.gpu_lock import choose_device, take_gpu
from acuity.study.errors import UsageError

GPUS = ["GPU-a", "GPU-b", "GPU-c"]


def hold_one(gpus: list[str], folder: Path, told: Connection) -> None:
    told.send(gpus[take_gpu(gpus, folder=folder)])
    told.recv()


@contextmanager
def holder(gpus: list[str], folder: Path) -> Iterator[str]:
    """Another process that holds a GPU during the block; yields which."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold_one, args=(gpus, folder, there))
    process.start()
    yield here.recv()
    process.kill()
    process.join()


def test_each_worker_takes_a_gpu_of_its_own_before_any_is_shared(tmp_path: Path) -> None:
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


def test_a_gpu_is_known_by_its_name_where_containers_number_them_otherwise(tmp_path: Path) -> None:
    with holder(["GPU-a", "GPU-b"], tmp_path) as first, holder(["GPU-a", "GPU-b"][::-1], tmp_path) as second:
        assert first != second


def test_device_that_was_named_is_left_as_it_is(tmp_path: Path) -> None:
    assert choose_device("cuda:1", folder=tmp_path) == "cuda:1"
    assert choose_device("cpu", folder=tmp_path) == "cpu"
    assert not list(tmp_path.iterdir())


def test_auto_means_the_free_gpu_where_there_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(GPUS))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=GPUS[number]))
    with holder(GPUS[1:], tmp_path), holder(GPUS[:1], tmp_path):
        assert choose_device("auto", folder=tmp_path) == "cuda:2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto", folder=tmp_path) == "auto"


def test_folder_that_cannot_hold_locks_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Name the GPU with --device"):
        take_gpu(GPUS, folder=tmp_path / "file" / "gpus")
