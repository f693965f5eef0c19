"""One worker measures the largest batch of a device, and the fleet reads it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import pytest

from acuity.storage.database import Database
from acuity.storage.feasible_batches import (
    FeasibleBatchKey,
    find_or_measure,
    lower_feasible_batch,
    read_feasible_batch,
    write_feasible_batch,
)

KEY = FeasibleBatchKey(
    device="NVIDIA H200",
    memory_budget_bytes=140 * 2**30,
    architecture="densenet121",
    input_size=448,
    precision="bf16",
    channels_last=True,
    torch_version="2.14.1+cu130",
)


def test_size_is_read_as_written_and_a_later_one_replaces_it(database: Database) -> None:
    assert read_feasible_batch(database, KEY) is None
    write_feasible_batch(database, KEY, 512)
    assert read_feasible_batch(database, KEY) == 512
    write_feasible_batch(database, KEY, 256)
    assert read_feasible_batch(database, KEY) == 256
    write_feasible_batch(database, KEY, 0)
    assert read_feasible_batch(database, KEY) == 0


def test_running_out_of_memory_never_raises_the_stored_size(database: Database) -> None:
    lower_feasible_batch(database, KEY, 512)
    assert read_feasible_batch(database, KEY) == 512
    lower_feasible_batch(database, KEY, 128)
    lower_feasible_batch(database, KEY, 256)
    assert read_feasible_batch(database, KEY) == 128


OTHER: dict[str, Any] = {
    "device": "NVIDIA A100",
    "memory_budget_bytes": 70 * 2**30,
    "architecture": "resnet34",
    "input_size": 64,
    "precision": "fp32",
    "channels_last": False,
    "torch_version": "2.13.0",
    "source_sha256": "0" * 64,
}


@pytest.mark.parametrize("field", [field.name for field in fields(FeasibleBatchKey)])
def test_every_field_of_the_key_separates_sizes(database: Database, field: str) -> None:
    write_feasible_batch(database, KEY, 512)
    other = replace(KEY, **{field: OTHER[field]})
    assert read_feasible_batch(database, other) is None
    write_feasible_batch(database, other, 8)
    assert read_feasible_batch(database, KEY) == 512


def test_known_size_is_not_measured_again(database: Database) -> None:
    write_feasible_batch(database, KEY, 512)
    assert find_or_measure(database, KEY, lambda: pytest.fail("measured")) == 512


def test_one_of_several_workers_measures_and_the_others_wait_for_it(database: Database) -> None:
    measured: list[None] = []
    measuring = threading.Event()

    def measure() -> int:
        measured.append(None)
        measuring.set()
        threading.Event().wait(0.5)
        return 512

    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(find_or_measure, database, KEY, measure)
        measuring.wait(60)
        others = [pool.submit(find_or_measure, database, KEY, measure) for _ in range(4)]
        assert [done.result() for done in (first, *others)] == [512] * 5
    assert len(measured) == 1


def test_other_keys_are_measured_meanwhile(database: Database) -> None:
    other = replace(KEY, input_size=64)
    assert find_or_measure(database, KEY, lambda: find_or_measure(database, other, lambda: 8) * 2) == 16


def test_worker_takes_over_from_one_whose_measurement_failed(database: Database) -> None:
    measuring, waiting = threading.Event(), threading.Event()

    def fail() -> int:
        measuring.set()
        waiting.wait(60)
        raise MemoryError("another process took the memory")

    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(find_or_measure, database, KEY, fail)
        measuring.wait(60)
        threading.Timer(0.2, waiting.set).start()
        assert find_or_measure(database, KEY, lambda: 512) == 512
        with pytest.raises(MemoryError):
            failed.result()


def test_wait_for_a_hung_measurement_is_limited(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acuity.storage.feasible_batches._LONGEST_MEASUREMENT_S", 0.5)
    measuring, woken = threading.Event(), threading.Event()

    def hang() -> int:
        measuring.set()
        woken.wait(60)
        return 256

    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(find_or_measure, database, KEY, hang)
        measuring.wait(60)
        assert find_or_measure(database, KEY, lambda: 512) == 512
        woken.set()
        hung.result()
