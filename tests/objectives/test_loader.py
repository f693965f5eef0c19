"""Images come in the order they are asked for, a little before they are needed, and once to a GPU that holds them."""

import threading

import numpy as np
import pytest
import torch

from acuity.objectives.training import loader as image_feed
from acuity.objectives.training.loader import ahead, open_feeds

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
PARTS = (np.arange(5, 30), np.arange(30, 40))
BATCHES = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(6, 4)


def test_each_part_serves_its_own_rows_in_the_order_of_the_batches() -> None:
    training, validation = open_feeds(IMAGES, *PARTS, device=torch.device("cpu"))
    for batch, positions in zip(training(BATCHES), BATCHES, strict=True):
        np.testing.assert_array_equal(batch.squeeze(1).numpy(), IMAGES[5 + positions.numpy()])
    (all_of_it,) = validation([torch.arange(10)])
    np.testing.assert_array_equal(all_of_it.squeeze(1).numpy(), IMAGES[30:])


def test_what_is_fetched_ahead_comes_in_order_and_not_further_ahead_than_asked() -> None:
    started: list[int] = []

    def fetch(number: int) -> int:
        started.append(number)
        return 10 * number

    coming = ahead(fetch, range(50), depth=2)
    assert not started
    assert [next(coming) for _ in range(3)] == [0, 10, 20]
    assert max(started) <= 4
    assert list(coming) == [10 * number for number in range(3, 50)]


def test_failure_while_fetching_ahead_is_raised_where_its_turn_comes() -> None:
    def fetch(number: int) -> int:
        if number == 2:
            raise OSError("the file is gone")
        return number

    coming = ahead(fetch, range(5), depth=3)
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(OSError, match="the file is gone"):
        next(coming)


def test_training_that_stops_leaves_no_thread_behind() -> None:
    coming = ahead(lambda number: number, range(100))
    next(coming)
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.gpu
@pytest.mark.parametrize("room", [0, 2**30], ids=["streamed", "kept"])
def test_gpu_is_served_the_same_images_whether_it_holds_them_or_not(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(image_feed, "resident_image_bytes", lambda *_, **__: room)
    feeds = open_feeds(IMAGES, *PARTS, device=torch.device("cuda"))
    for batch, positions in zip(feeds[0](BATCHES), BATCHES, strict=True):
        np.testing.assert_array_equal(batch.squeeze(1).cpu().numpy(), IMAGES[5 + positions.numpy()])
