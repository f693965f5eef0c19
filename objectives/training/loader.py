"""Batches of stored images, brought to the device as the bytes they are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.device.device import resident_image_bytes

Feed = Callable[[Iterable[torch.Tensor]], Iterator[torch.Tensor]]
"""Batches of positions (int64, on the CPU) among the feed's rows -> their images in turn, uint8 [B, 1, R, R] on the
device."""
_AHEAD = 2  # the device works on one batch while one is being gathered and one copied
A = TypeVar("A")
B = TypeVar("B")


def open_feeds(
    images: NDArray[np.uint8], *parts: NDArray[np.int64], device: torch.device, workers: int = 1
) -> list[Feed]:
    """Serve the rows of each part of an array that may be memory-mapped.

    On a GPU they all move there at once if together they fit the share of its memory that the images of one of its
    workers have; otherwise batches are gathered and copied on a stream of their own while the device works on others.
    """
    images = np.asarray(images)
    if device.type == "cpu":
        return [partial(map, partial(_gather, images, rows)) for rows in parts]
    if images[0].nbytes * sum(map(len, parts)) > resident_image_bytes(device, workers=workers):
        return [partial(_stream, images, rows, device=device) for rows in parts]
    return [_keep(images, rows, device=device) for rows in parts]


def ahead(function: Callable[[A], B], arguments: Iterable[A], *, depth: int = _AHEAD) -> Iterator[B]:
    """As map(function, arguments), in a thread that is up to `depth` results ahead of who asks for them."""
    coming: deque[Future[B]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as thread:
        try:
            for argument in arguments:
                coming.append(thread.submit(function, argument))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for result in coming:
                result.cancel()


def _gather(images: NDArray[np.uint8], rows: NDArray[np.int64], positions: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(images[rows[positions.numpy()]]).unsqueeze(1)


def _keep(images: NDArray[np.uint8], rows: NDArray[np.int64], *, device: torch.device) -> Feed:
    """Move the rows to the device, once."""
    kept = torch.empty(len(rows), 1, *images.shape[1:], dtype=torch.uint8, device=device)
    for some in torch.arange(len(rows)).split(max(1, 2**28 // images[0].nbytes)):
        kept[some[0] : some[-1] + 1] = _gather(images, rows, some).to(device)
    return partial(map, lambda positions: kept[positions.to(device, non_blocking=True)])


def _stream(
    images: NDArray[np.uint8], rows: NDArray[np.int64], batches: Iterable[torch.Tensor], *, device: torch.device
) -> Iterator[torch.Tensor]:
    copies = torch.cuda.Stream(device)

    def bring(positions: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        pinned = _gather(images, rows, positions).pin_memory()
        with torch.cuda.stream(copies):
            return pinned.to(device, non_blocking=True), copies.record_event()

    for there, copied in ahead(bring, batches):
        work = torch.cuda.current_stream(device)
        work.wait_event(copied)
        there.record_stream(work)  # its memory is not given away before the work on it is done
        yield there
