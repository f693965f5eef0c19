"""Errors for images that the cache cannot hold: count, index lines and next step."""

from collections.abc import Collection
from dataclasses import dataclass

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex

_MAX_NAMED = 10


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read or is smaller than the largest resolution. line: of the index file."""

    row: int
    line: int
    reason: str


def bad_images(index: ImageIndex, reasons: dict[int, str]) -> tuple[BadImage, ...]:
    """The bad images in the index's order."""
    lines = index.table["line"].to_numpy()
    return tuple(BadImage(row, int(lines[row]), reason) for row, reason in sorted(reasons.items()))


def too_small(index: ImageIndex, max_resolutions: dict[int, int], resolution: int) -> InputError:
    """The error for images that are smaller than a resolution. It names the first 10 by line and counts the others.

    max_resolutions: row of each such image -> the largest resolution that does not enlarge it.
    """
    named = _named(index, {row: f"{limit} px" for row, limit in max_resolutions.items()})
    return InputError(
        f"{len(max_resolutions):,} of {len(index.table):,} images are smaller than {resolution} px, and enlarging them "
        f'adds nothing: {named}. Leave such images out with [data] on_bad_image = "drop", or lower the resolutions: '
        f"the largest resolution that all images allow is {min(max_resolutions.values())}"
    )


def unreadable(index: ImageIndex, reasons: dict[int, str]) -> InputError:
    """The error for unreadable images. It names the first 10 by line and counts the others."""
    return InputError(
        f"{len(reasons):,} of {len(index.table):,} images cannot be read: {_named(index, reasons)}. Replace them with "
        f"intact files, take these lines out of {index.path}, or leave such images out with [data] on_bad_image = "
        '"drop"',
    )


def changed(index: ImageIndex, rows: Collection[int], arrays: str) -> InputError:
    """The error for files that have changed since they were decoded. arrays: pattern of the paths to delete."""
    named = _named(index, dict.fromkeys(rows, ""))
    return InputError(
        f"{len(rows):,} of {len(index.table):,} files have another content than when the arrays were built: {named}. "
        "Put the earlier files back; or, to use the new ones, delete the arrays and their record (rm "
        f"{arrays}) and run `acuity prepare` again: results of other pictures are not comparable"
    )


def _named(index: ImageIndex, facts: dict[int, str]) -> str:
    """The first 10 images by line with a fact each, and the number of the others."""
    named = [f"{index.row_name(row)} ({fact})" if fact else index.row_name(row) for row, fact in sorted(facts.items())]
    more = f", and {len(named) - _MAX_NAMED:,} more" if len(named) > _MAX_NAMED else ""
    return ", ".join(named[:_MAX_NAMED]) + more
