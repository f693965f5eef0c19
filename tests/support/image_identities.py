"""The identity of an image set that exists in name only, for tests that read no image."""

from acuity.study.registry.identity import ImageIdentity


def unfiltered(*, index: str = "index", split: str = "split", unused: str = "unused") -> ImageIdentity:
    """As without filters: the index and split before filters are the same."""
    return ImageIdentity(
        index_sha256=index,
        split_sha256=split,
        whole_index_sha256=index,
        whole_split_sha256=split,
        unused_sha256=unused,
    )
