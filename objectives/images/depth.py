"""Estimate the bit depth of an image that is stored in 16 bits."""

from dataclasses import dataclass

import numpy as np

BIT_DEPTHS = (8, 10, 12, 14, 16)
_STRAY_SHARE = 0.001
"""Largest share of the pixels that may lie outside the depth with any value: dead pixels of a detector."""
_MARKER_SHARE = 0.02
"""Largest share of the pixels that may lie far outside the depth with one value: a burned-in marker."""
_OFFSET = 1 << 15
_CHUNK = 1 << 20


@dataclass(frozen=True)
class DepthRange:
    """The smallest depth that holds an image, and the range of its values."""

    depth: int
    least: int
    most: int


def estimate_depth(values: np.ndarray) -> DepthRange:
    """The smallest depth (8, 10, 12, 14, 16) that holds the values, signed only if they are. values: int16 or uint16.

    Up to 0.1 % of the pixels may lie outside the depth. A marker, which is a further 2 % of the pixels with one value,
    may too if this value is at least twice as far from 0 as the depth reaches: a radiograph is blurred, so its own
    bright structures have values in between.
    """
    counts = _histogram(values)
    signed = values.dtype.kind == "i" and not _is_negligible(counts, 0, _OFFSET)
    for depth in BIT_DEPTHS[:-1]:
        least, most = (-(1 << depth - 1), (1 << depth - 1) - 1) if signed else (0, (1 << depth) - 1)
        if _is_negligible(counts, least, most):
            return DepthRange(depth, least, most)
    if values.dtype.kind == "i":
        return DepthRange(16, -_OFFSET if signed else 0, _OFFSET - 1)
    return DepthRange(16, 0, (1 << 16) - 1)


def _histogram(values: np.ndarray) -> np.ndarray:
    """Number of pixels of each value from -32,768 to 65,535."""
    flat = values.reshape(-1)
    counts = np.zeros(3 * _OFFSET, dtype=np.int64)
    for first in range(0, len(flat), _CHUNK):
        counts += np.bincount(flat[first : first + _CHUNK].astype(np.int32) + _OFFSET, minlength=len(counts))
    return counts


def _is_negligible(counts: np.ndarray, least: int, most: int) -> bool:
    """True if the values outside least..most are stray pixels and markers only."""
    below, above = counts[: least + _OFFSET], counts[most + _OFFSET + 1 :]
    stray, total = int(below.sum() + above.sum()), int(counts.sum())
    if not stray:
        return True
    present = np.flatnonzero(counts) - _OFFSET
    for extreme, is_far in ((present[0], present[0] < 2 * least), (present[-1], present[-1] >= 2 * (most + 1))):
        count = int(counts[extreme + _OFFSET])
        if is_far and count <= _MARKER_SHARE * total:
            stray -= count
    return stray <= _STRAY_SHARE * total
