"""Identities of made-up image sets, for tests that read no image."""

from acuity.study.registry.identity import ImageIdentity


def unfiltered(*, index: str = "index", split: str = "split", unused: str = "unused") -> ImageIdentity:
    """The identity without filters: index and split are the same before and after."""
    return ImageIdentity(
        index_sha256=index,
        split_sha256=split,
        whole_index_sha256=index,
        whole_split_sha256=split,
        unused_sha256=unused,
    )
