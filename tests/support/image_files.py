"""Decode an image file."""

from pathlib import Path

import numpy as np

from acuity.objectives.images.decoding import decode_grey, read_file


def read_grey(path: Path) -> np.ndarray:
    """The pixels of `decode_grey`, for the file at path."""
    return decode_grey(read_file(path)).pixels
