"""What a cache says of images that it cannot hold: how many, which by line, and the way out."""

from dataclasses import dataclass

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex

_MOST_NAMED = 10


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read, by its row and by its line in the index's file."""

    row: int
    line: int
    reason: str


def bad_images(index: ImageIndex, reasons: dict[int, str]) -> tuple[BadImage, ...]:
    """The bad images in the index's order."""
    lines = index.table["line"].to_numpy()
    return tuple(BadImage(row, int(lines[row]), reason) for row, reason in sorted(reasons.items()))


def too_small(index: ImageIndex, sides: dict[int, int], resolution: int) -> InputError:
    """sides: row -> the largest resolution that the image allows."""
    return InputError(
        f"{len(sides):,} of {len(index.table):,} images are smaller than {resolution} px (the first: "
        f"{index.place(min(sides))}), and enlarging them adds nothing: the largest resolution that all images allow is "
        f"{min(sides.values())}"
    )


def unreadable(index: ImageIndex, reasons: dict[int, str]) -> InputError:
    """Names the first few and counts the rest."""
    bad = bad_images(index, reasons)
    named = ", ".join(f"{index.place(image.row)} ({image.reason})" for image in bad[:_MOST_NAMED])
    more = f", and {len(bad) - _MOST_NAMED:,} more" if len(bad) > _MOST_NAMED else ""
    return InputError(
        f"{len(bad):,} of {len(index.table):,} images cannot be read: {named}{more}. Put whole files in their place, "
        f'take these lines out of {index.path}, or leave such images out with [data] on_bad_image = "drop"',
    )
