"""Errors for images that the cache cannot hold: count, index lines and next step."""

from dataclasses import dataclass

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex

_MAX_NAMED = 10


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read. line: of the index file."""

    row: int
    line: int
    reason: str


def bad_images(index: ImageIndex, reasons: dict[int, str]) -> tuple[BadImage, ...]:
    """The bad images in the index's order."""
    lines = index.table["line"].to_numpy()
    return tuple(BadImage(row, int(lines[row]), reason) for row, reason in sorted(reasons.items()))


def too_small(index: ImageIndex, max_resolutions: dict[int, int], resolution: int) -> InputError:
    """The error for images that are smaller than a resolution.

    max_resolutions: row of each such image -> the largest resolution that does not enlarge it.
    """
    return InputError(
        f"{len(max_resolutions):,} of {len(index.table):,} images are smaller than {resolution} px (the first: "
        f"{index.row_name(min(max_resolutions))}), and enlarging them adds nothing: the largest resolution that all "
        f"images allow is {min(max_resolutions.values())}"
    )


def unreadable(index: ImageIndex, reasons: dict[int, str]) -> InputError:
    """The error for unreadable images. It names the first 10 by line and counts the others."""
    bad = bad_images(index, reasons)
    named = ", ".join(f"{index.row_name(image.row)} ({image.reason})" for image in bad[:_MAX_NAMED])
    more = f", and {len(bad) - _MAX_NAMED:,} more" if len(bad) > _MAX_NAMED else ""
    return InputError(
        f"{len(bad):,} of {len(index.table):,} images cannot be read: {named}{more}. Replace them with intact files, "
        f'take these lines out of {index.path}, or leave such images out with [data] on_bad_image = "drop"',
    )
