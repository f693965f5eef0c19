"""Decode an image file to grey pixels.

Time per radiograph of 1024 px (benchmarks/speed/prepare.py): OpenCV decodes a PNG in 8.3 ms and Pillow in 10.8 ms.
OpenCV and simplejpeg decode a JPEG in 1.1 ms. torchvision's decoder crashes on damaged PNGs.
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
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.dicom import BIT_DEPTHS, dicom_grey, dicom_size, is_dicom, open_dicom
from acuity.objectives.images.resizing import Fit, max_resolution

_FORMATS = ("PNG", "JPEG")
LARGEST_PIXELS = 1 << 27
"""Radiographs are smaller. A small file that unpacks to more pixels is damaged or a decompression bomb."""
_TOO_LARGE = f"more than {LARGEST_PIXELS:,} pixels"
_HEAD_BYTES = 132
_FILE_ERRORS = {
    errno.EACCES, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM,
}  # fmt: skip
"""Errors of a single file. Other errors are of the disk or of the process."""
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
_LOST_PIXELS = re.compile(r"Corrupt JPEG data: .*|Premature end of JPEG file|Inconsistent progression sequence.*")


def read_grey(path: Path) -> np.ndarray:
    """Decode an image: uint8 [H, W], or float32 [H, W] in [0, 255] if the file has more than 8 bits.

    In a PNG or JPEG the alpha channel is ignored (NIH's is opaque) and EXIF rotation is applied. 16 bits are scaled by
    the smallest depth (8, 10, 12, 14, 16) that holds the image: otherwise a 12-bit radiograph in a 16-bit file would be
    black. UnreadableImageError if the file is not a PNG, JPEG or DICOM image or if pixels are missing. InputError if a
    DICOM file needs a package that is not installed. Redirects standard error of the whole process while it decodes.
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
        # libjpeg fills missing pixels with grey, and older versions of OpenCV return the result as an image.
        if data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
            raise UnreadableImageError("truncated")
        if lost:
            raise UnreadableImageError(lost[0])
    return image if image.dtype == np.uint8 else _scale_deep(image)


def max_resolution_of_file(path: Path, fit: Fit) -> int:
    """The largest resolution that does not enlarge the image, from the file's header alone. UnreadableImageError."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            size = dicom_size(open_dicom(file, header_only=True)) if is_dicom(head) else _open(file).size
    except OSError as error:
        raise UnreadableImageError(_reason_without_path(error)) from None
    return max_resolution(size, fit)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise InputError(
                f"images cannot be read now ({error.strerror}): check the disk, then run this again"
            ) from None
        raise UnreadableImageError(_reason_without_path(error)) from None


@contextlib.contextmanager
def _decoder_messages() -> Iterator[Callable[[], str]]:
    """Capture what C decoders print to standard error. libjpeg reports lost pixels only there."""
    captured = _message_file()
    os.lseek(captured, 0, os.SEEK_SET)
    os.ftruncate(captured, 0)
    stderr = os.dup(2)
    os.dup2(captured, 2)
    try:
        yield lambda: os.pread(captured, 10_000, 0).decode(errors="replace")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@functools.cache
def _message_file() -> int:
    """One temporary file per process. Making one per image takes longer than decoding a small PNG."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _check_area(size: tuple[int, int]) -> None:
    if size[0] * size[1] > LARGEST_PIXELS:
        raise UnreadableImageError(_TOO_LARGE)


def _header_size(data: bytes) -> tuple[int, int]:
    if not data:
        raise UnreadableImageError("empty file")
    return _open(io.BytesIO(data)).size


def _open(file: IO[bytes]) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns at a lower number of pixels than LARGEST_PIXELS.
        warnings.simplefilter("ignore")
        try:
            return Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            raise UnreadableImageError("not a PNG, JPEG or DICOM image") from None
        except Image.DecompressionBombError:
            raise UnreadableImageError(_TOO_LARGE) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImageError(_reason_without_path(error)) from None


def _decode(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # a size beyond OpenCV's own limits
        return None


def _reason(data: bytes) -> str:
    """The reason why an image cannot be decoded, from Pillow: OpenCV gives none."""
    image = _open(io.BytesIO(data))
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return _reason_without_path(error)
    return "damaged"


def _reason_without_path(error: Exception) -> str:
    """A reason without a file name: the system's message for a system error, else "truncated" or "damaged"."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "truncated" if "truncated" in str(error).lower() else "damaged"


def _scale_deep(image: np.ndarray) -> np.ndarray:
    """uint16 -> float32 in [0, 255], by the smallest bit depth that holds the image."""
    largest = int(image.max())
    bits = next(bits for bits in BIT_DEPTHS if largest < 1 << bits)
    return image.astype(np.float32) * np.float32(255 / ((1 << bits) - 1))
