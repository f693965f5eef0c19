"""One image file -> grey pixels, and their area average at any smaller resolution.

OpenCV decodes: measured on 1024 px radiographs (benchmarks/speed/prepare.py) it takes 8.3 ms a PNG where Pillow takes
10.8, a JPEG 1.1 as simplejpeg does, and torchvision's decoder crashes on damaged PNGs. OpenCV's INTER_AREA is a true
area average. Pillow's BOX counts whole pixels only: at other than whole ratios it is 4 to 40 grey levels off on
radiographs.
"""

import contextlib
import errno
import functools
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.dicom import dicom_grey, dicom_size, is_dicom, open_dicom

Fit = Literal["pad", "stretch"]
"""What becomes of an image that is not square: it gets black bands at two sides, or its longer side is shrunk more."""
_FORMATS = ("PNG", "JPEG")
LARGEST_PIXELS = 1 << 27
"""No radiograph is larger; a few kilobytes that unpack to more than this are an attack or damage."""
_TOO_LARGE = f"more than {LARGEST_PIXELS:,} pixels"
_HEAD_BYTES = 132
_OF_THE_FILE = {
    errno.EACCES, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM,
}  # fmt: skip
"""Errors that say that a file is bad; others, that the disk is away or the process at its limits."""

_BIT_DEPTHS = (8, 10, 12, 14, 16)
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
_LOST_PIXELS = re.compile(r"Corrupt JPEG data: .*|Premature end of JPEG file|Inconsistent progression sequence.*")


def read_grey(path: Path) -> np.ndarray:
    """Decode an image: uint8 [H, W], or float32 [H, W] in [0, 255] where the file has more than 8 bits.

    Of a PNG or JPEG, an alpha channel is ignored (NIH's are opaque), EXIF rotation is applied, and 16 bits are scaled
    from the least depth (8, 10, 12, 14, 16) that holds them: a 12-bit radiograph in a 16-bit file would else be black.
    UnreadableImageError if the file is nothing of the kind or lacks any of its pixels; InputError if a DICOM file needs
    a package that is not there. Takes over standard error meanwhile: for a process of its own.
    """
    data = _read(path)
    with _decoder_messages() as messages:
        if is_dicom(data):
            dataset = open_dicom(io.BytesIO(data))
            _check_area(dicom_size(dataset))
            return dicom_grey(dataset)
        _check_area(_header_size(data))
        image = _decode(data)
        lost = _LOST_PIXELS.search(messages())
    if image is None:
        raise UnreadableImageError(_reason(data))
    if data.startswith(b"\xff\xd8"):
        # libjpeg fills what is missing with grey and carries on; older OpenCV hands that out as if it were the image.
        if data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
            raise UnreadableImageError("truncated")
        if lost:
            raise UnreadableImageError(lost[0])
    return image if image.dtype == np.uint8 else _scale_deep(image)


def image_side(path: Path, fit: Fit) -> int:
    """The largest resolution that an image allows without being enlarged, from the file's header alone."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            size = dicom_size(open_dicom(file, header_only=True)) if is_dicom(head) else _open(file).size
    except OSError as error:
        raise UnreadableImageError(_without_name(error)) from None
    return usable_side(size, fit)


def usable_side(size: tuple[int, int], fit: Fit) -> int:
    """The largest resolution of an image of this height and width, in either order, that enlarges nothing."""
    return max(size) if fit == "pad" else min(size)


def fit_square(image: np.ndarray, fit: Fit) -> np.ndarray:
    """Pad [H, W] to a square of its longer side, or leave it as it is for area_average to stretch."""
    height, width = image.shape
    if height == width or fit == "stretch":
        return image
    side = max(height, width)
    square = np.zeros((side, side), dtype=image.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def area_average(image: np.ndarray, resolution: int) -> np.ndarray:
    """Each pixel the mean of the area that it covers: [H, W] -> uint8 [R, R], half a grey level off at most."""
    if image.shape != (resolution, resolution):
        image = cv2.resize(image, (resolution, resolution), interpolation=cv2.INTER_AREA)
    return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise InputError(f"images cannot be read now ({error.strerror}): mend that, then run this again") from None
        raise UnreadableImageError(_without_name(error)) from None


def _open(file: IO[bytes]) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow's own limit on pixels warns; ours is the one that counts.
        warnings.simplefilter("ignore")
        try:
            return Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            raise UnreadableImageError("not a PNG, JPEG or DICOM image") from None
        except Image.DecompressionBombError:
            raise UnreadableImageError(_TOO_LARGE) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImageError(_without_name(error)) from None


def _header_size(data: bytes) -> tuple[int, int]:
    if not data:
        raise UnreadableImageError("empty file")
    return _open(io.BytesIO(data)).size


def _check_area(size: tuple[int, int]) -> None:
    if size[0] * size[1] > LARGEST_PIXELS:
        raise UnreadableImageError(_TOO_LARGE)


def _scale_deep(image: np.ndarray) -> np.ndarray:
    largest = int(image.max())
    bits = next(bits for bits in _BIT_DEPTHS if largest < 1 << bits)
    return image.astype(np.float32) * np.float32(255 / ((1 << bits) - 1))


def _reason(data: bytes) -> str:
    """Why OpenCV gave nothing: Pillow tells, OpenCV does not."""
    image = _open(io.BytesIO(data))
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return _without_name(error)
    return "damaged"


def _without_name(error: Exception) -> str:
    """A reason that cannot hold a path: the system's words for its own errors, of Pillow's only those on truncation."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "truncated" if "truncated" in str(error).lower() else "damaged"


def _decode(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # a size beyond OpenCV's own limits
        return None


@contextlib.contextmanager
def _decoder_messages() -> Iterator[Callable[[], str]]:
    """Catch what the decoders' C code prints to standard error: libjpeg tells of lost pixels nowhere else."""
    caught = _message_file()
    os.lseek(caught, 0, os.SEEK_SET)
    os.ftruncate(caught, 0)
    stderr = os.dup(2)
    os.dup2(caught, 2)
    try:
        yield lambda: os.pread(caught, 10_000, 0).decode(errors="replace")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@functools.cache
def _message_file() -> int:
    """One nameless file for the life of the process: making one for each image would take longer than a small PNG."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
