"""SHA-256 of the cache's arrays, by shard: a damaged or exchanged pixel is found without reading whole arrays."""

import hashlib
from collections.abc import Sequence
from random import SystemRandom

import numpy as np

_SHARD_BYTES = 16 * 2**20
_SAMPLED_SHARDS = 4


def digest_array(pixels: np.ndarray) -> list[str]:
    """SHA-256 of each shard. pixels: uint8 [N, R, R]."""
    return [_digest(pixels, shard) for shard in range(count_shards(pixels))]


def find_changed_rows(pixels: np.ndarray, digests: Sequence[str]) -> range | None:
    """The rows of a shard that has another digest, in a random sample of four shards; None where all are the same."""
    shards = range(count_shards(pixels))
    if len(digests) != len(shards):
        return range(len(pixels))
    for shard in SystemRandom().sample(shards, k=min(_SAMPLED_SHARDS, len(shards))):
        if _digest(pixels, shard) != digests[shard]:
            return _rows(pixels, shard)
    return None


def count_shards(pixels: np.ndarray) -> int:
    """Number of shards of an array: 16 MiB each, at least one image."""
    return -(-len(pixels) // _images_per_shard(pixels))


def _digest(pixels: np.ndarray, shard: int) -> str:
    rows = _rows(pixels, shard)
    return hashlib.sha256(pixels[rows.start : rows.stop].tobytes()).hexdigest()


def _rows(pixels: np.ndarray, shard: int) -> range:
    images = _images_per_shard(pixels)
    return range(shard * images, min((shard + 1) * images, len(pixels)))


def _images_per_shard(pixels: np.ndarray) -> int:
    return max(1, _SHARD_BYTES // int(pixels.shape[1] * pixels.shape[2]))
