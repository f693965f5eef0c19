"""The grey pixels of an image file."""

from dataclasses import dataclass

import numpy as np

from acuity.objectives.errors import UnreadableImageError


@dataclass(frozen=True, eq=False)
class GreyImage:
    """The grey pixels of a file."""

    pixels: np.ndarray
    """uint8 or float32 [H, W], from 0 (black) to 255 (white)."""
    depth: int | None = None
    """Bits by which an image of 16 bits was scaled. None if the file itself gives the range."""


def check_variation(grey: np.ndarray) -> None:
    """UnreadableImageError if all pixels have the same grey, within one level."""
    if float(grey.max()) - float(grey.min()) < 1:
        raise UnreadableImageError("shows nothing: every pixel has the same grey")
