"""Load batches of stored images to the device as uint8."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.device.device import image_memory_budget

BatchLoader = Callable[[Iterable[torch.Tensor]], Iterator[torch.Tensor]]
"""Maps batches of positions among the loader's rows (int64 [B] on the CPU) to their images (uint8 [B, 1, R, R] on the
device)."""
_PREFETCH_DEPTH = 2  # one batch is gathered and one copied while the device computes another
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, eq=False)
class ResidentImages:
    """A loader whose images are all on the device: uint8 [N, 1, R, R]."""

    images: torch.Tensor

    def __call__(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        positions = list(batches)
        here = torch.cat(positions).to(self.images.device)  # one copy for all batches: each would wait for the device
        for batch in here.split([len(batch) for batch in positions]):
            yield self.images[batch]


def open_loaders(
    images: NDArray[np.uint8], *parts: NDArray[np.int64], device: torch.device, image_budget_bytes: int | None = None
) -> list[BatchLoader]:
    """Open a loader for the rows of each part of an array, which may be memory-mapped.

    A GPU holds all rows if they fit image_budget_bytes; None is the budget of a GPU's only worker. Otherwise batches
    are gathered in a thread and copied on a separate CUDA stream while the GPU computes.
    """
    images = np.asarray(images)
    if device.type == "cpu":
        return [partial(map, partial(_gather, images, rows)) for rows in parts]
    if image_budget_bytes is None:
        image_budget_bytes = image_memory_budget(device, workers=1)
    if images[0].nbytes * sum(map(len, parts)) > image_budget_bytes:
        # One stream for all epochs: the allocator gives memory that it freed on one stream to no other stream.
        copy_stream = torch.cuda.Stream(device)
        return [partial(_stream, images, rows, copy_stream=copy_stream) for rows in parts]
    return [_load_all(images, rows, device=device) for rows in parts]


def prefetch(
    function: Callable[[A], B],
    arguments: Iterable[A],
    *,
    depth: int = _PREFETCH_DEPTH,
    start_thread: Callable[[], None] = lambda: None,
) -> Iterator[B]:
    """Like map(function, arguments), computed in a thread up to `depth` results ahead.

    start_thread: called in the thread before the function.
    """
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images", initializer=start_thread) as thread:
        try:
            for argument in arguments:
                pending.append(thread.submit(function, argument))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for result in pending:
                result.cancel()


def _gather(images: NDArray[np.uint8], rows: NDArray[np.int64], positions: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(images[rows[positions.numpy()]]).unsqueeze(1)


def _load_all(images: NDArray[np.uint8], rows: NDArray[np.int64], *, device: torch.device) -> ResidentImages:
    """Copy all rows to the device once."""
    resident = torch.empty(len(rows), 1, *images.shape[1:], dtype=torch.uint8, device=device)
    for positions in torch.arange(len(rows)).split(max(1, 2**28 // images[0].nbytes)):
        resident[positions[0] : positions[-1] + 1] = _gather(images, rows, positions).to(device)
    return ResidentImages(resident)


def _stream(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    batches: Iterable[torch.Tensor],
    *,
    copy_stream: torch.cuda.Stream,
) -> Iterator[torch.Tensor]:
    """Gather and copy batches ahead of the device's work."""
    device = copy_stream.device

    def copy(positions: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        pinned = _gather(images, rows, positions).pin_memory()
        with torch.cuda.stream(copy_stream):
            return pinned.to(device, non_blocking=True), copy_stream.record_event()

    # A new thread's current GPU is the first one. Pinning memory would create a context of 0.5 GiB there.
    for on_device, copied in prefetch(copy, batches, start_thread=partial(torch.cuda.set_device, device)):
        compute_stream = torch.cuda.current_stream(device)
        compute_stream.wait_event(copied)
        on_device.record_stream(compute_stream)  # keeps the memory until the work on it is done
        yield on_device
