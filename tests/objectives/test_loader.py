"""Loaders give images in the order of the batches, prefetch a few batches, and give the same images on a GPU."""

import threading

import numpy as np
import pytest
import torch

from acuity.objectives.training.loader import open_loaders, prefetch

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
PARTS = (np.arange(5, 30), np.arange(30, 40))
BATCHES = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(6, 4)


def test_each_loader_gives_the_rows_of_its_part_in_the_order_of_the_batches() -> None:
    training, validation = open_loaders(IMAGES, *PARTS, device=torch.device("cpu"))
    for batch, positions in zip(training(BATCHES), BATCHES, strict=True):
        np.testing.assert_array_equal(batch.squeeze(1).numpy(), IMAGES[5 + positions.numpy()])
    (whole_part,) = validation([torch.arange(10)])
    np.testing.assert_array_equal(whole_part.squeeze(1).numpy(), IMAGES[30:])


def test_prefetched_results_are_in_order_and_at_most_depth_ahead() -> None:
    started: list[int] = []

    def fetch(number: int) -> int:
        started.append(number)
        return 10 * number

    results = prefetch(fetch, range(50), depth=2)
    assert not started
    assert [next(results) for _ in range(3)] == [0, 10, 20]
    assert max(started) <= 4
    assert list(results) == [10 * number for number in range(3, 50)]


def test_error_while_prefetching_is_raised_at_its_position() -> None:
    def fetch(number: int) -> int:
        if number == 2:
            raise OSError("the file is gone")
        return number

    results = prefetch(fetch, range(5), depth=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="the file is gone"):
        next(results)


def test_closed_prefetch_leaves_no_thread() -> None:
    results = prefetch(lambda number: number, range(100))
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.gpu
@pytest.mark.parametrize("budget_bytes", [0, 2**30], ids=["streamed", "resident"])
def test_gpu_gets_the_same_images_resident_or_streamed(budget_bytes: int) -> None:
    training, _ = open_loaders(IMAGES, *PARTS, device=torch.device("cuda"), image_budget_bytes=budget_bytes)
    for batch, positions in zip(training(BATCHES), BATCHES, strict=True):
        np.testing.assert_array_equal(batch.squeeze(1).cpu().numpy(), IMAGES[5 + positions.numpy()])
