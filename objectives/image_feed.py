"""Batches of stored images, brought to the device as the bytes they are."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.batch_size import resident_image_bytes

Feed = Callable[[torch.Tensor], torch.Tensor]
"""Positions (int64, on the CPU) among the feed's rows -> uint8 [B, 1, R, R] on the device."""


def open_feed(images: NDArray[np.uint8], rows: NDArray[np.int64], *, device: torch.device, workers: int = 1) -> Feed:
    """Serve the given rows of an array that may be memory-mapped.

    On a GPU they all move there at once if they fit the share of its memory that images have; otherwise each batch is
    copied from pinned memory while the device works on the one before.
    """
    images = np.asarray(images)

    def from_host(positions: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(images[rows[positions.numpy()]]).unsqueeze(1)

    if device.type == "cpu":
        return from_host
    image_bytes = images[0].nbytes
    if len(rows) * image_bytes > resident_image_bytes(device, workers=workers):
        return lambda positions: from_host(positions).pin_memory().to(device, non_blocking=True)
    resident = torch.empty(len(rows), 1, *images.shape[1:], dtype=torch.uint8, device=device)
    chunk = max(1, 2**28 // image_bytes)
    for start in range(0, len(rows), chunk):
        resident[start : start + chunk] = from_host(torch.arange(start, min(start + chunk, len(rows)))).to(device)
    return lambda positions: resident[positions.to(device, non_blocking=True)]
