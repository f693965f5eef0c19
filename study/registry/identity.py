"""The identity of an image set, in SHA-256 sums. Trials are comparable if they have the same identity."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageIdentity:
    """SHA-256 of the index, the split and the unused images. Filters change the index and the split."""

    index_sha256: str
    """Of the index after filters."""
    split_sha256: str
    """Of the split after filters."""
    whole_index_sha256: str
    """Of the index before filters."""
    whole_split_sha256: str
    """Of the split before filters. Uses of the test patients are counted by it."""
    unused_sha256: str
    """Of the images in no part: they cannot be read, or they repeat an image of an earlier part."""
