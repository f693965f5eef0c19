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
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.codestream import codestream_end, without_gaps
from acuity.objectives.images.depth import estimate_depth
from acuity.objectives.images.dicom import dicom_grey, dicom_size, is_dicom, open_dicom
from acuity.objectives.images.grey import GreyImage, check_variation
from acuity.objectives.images.resizing import Fit, max_resolution

_FORMATS = ("PNG", "JPEG")
_COLOUR_MODES = ("RGB", "RGBA", "P", "RGBX")
LARGEST_PIXELS = 1 << 27
"""Radiographs are smaller. A small file that unpacks to more pixels is damaged or a decompression bomb."""
_TOO_LARGE = f"more than {LARGEST_PIXELS:,} pixels"
_HEAD_BYTES = 132
_FILE_ERRORS = {
    errno.EACCES, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM,
}  # fmt: skip
"""Errors of a single file. Other errors are of the disk or of the process."""
_LOST_PIXELS = re.compile(r"Corrupt JPEG data: .*|Premature end of JPEG file|Inconsistent progression sequence.*")


def decode_grey(data: bytes) -> GreyImage:
    """Decode an image: uint8 [H, W], or float32 [H, W] in [0, 255] if the file has more than 8 bits.

    In a PNG or JPEG the alpha channel is ignored (NIH's is opaque) and EXIF rotation is applied. 16 bits are scaled by
    the smallest depth that holds the image (`estimate_depth`): otherwise a 12-bit radiograph in a 16-bit file would be
    black. UnreadableImageError if the file is not a PNG, JPEG or DICOM image, if pixels are missing, or if all pixels
    have the same grey. InputError if a DICOM file needs a package that is not installed. Redirects standard error of
    the whole process while it decodes.
    """
    with _errors_as_unreadable(data):
        image = _decode_dicom(data) if is_dicom(data) else _decode_png_or_jpeg(data)
        check_variation(image.pixels)
        return image


def max_resolution_of_file(path: Path, fit: Fit) -> int:
    """The largest resolution that does not enlarge the image, from the file's header alone. UnreadableImageError."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            with _errors_as_unreadable(head):
                size = dicom_size(open_dicom(file, header_only=True)) if is_dicom(head) else _open(file).size
    except OSError as error:
        raise UnreadableImageError(_reason_without_path(error)) from None
    return max_resolution(size, fit)


def read_file(path: Path) -> bytes:
    """The content of an image file. UnreadableImageError if it is not there, or no regular file."""
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise InputError(
                f"images cannot be read now ({error.strerror}): check the disk, then run this again"
            ) from None
        raise UnreadableImageError(_reason_without_path(error)) from None


def check_regular(path: Path) -> None:
    """UnreadableImageError for a named pipe or a device, which could block for ever. OSError as of `Path.stat`."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder gives the system's own reason
        raise UnreadableImageError("not a regular file")


def _decode_dicom(data: bytes) -> GreyImage:
    with _decoder_messages():
        dataset = open_dicom(io.BytesIO(data))
        _check_area(dicom_size(dataset))
        return dicom_grey(dataset)


def _decode_png_or_jpeg(data: bytes) -> GreyImage:
    if not data:
        raise UnreadableImageError("empty file")
    with _decoder_messages() as messages:
        header = _open(io.BytesIO(data))
        _check_area(header.size)
        if header.format == "JPEG":
            data = without_gaps(data)
        image = _decode(data, colour=header.format == "PNG" and header.mode in _COLOUR_MODES)
        lost = _LOST_PIXELS.search(messages())
    if image is None:
        raise UnreadableImageError(_reason(data))
    if header.format == "JPEG":
        # libjpeg fills missing pixels with grey, and older versions of OpenCV return the result as an image.
        if codestream_end(data) is None:
            raise UnreadableImageError("truncated")
        if lost:
            raise UnreadableImageError(lost[0])
    return GreyImage(image) if image.dtype == np.uint8 else _scale_deep(image)


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


def _open(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImageError("not a PNG, JPEG or DICOM image") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(_TOO_LARGE) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableImageError(_reason_without_path(error)) from None


def _decode(data: bytes, *, colour: bool) -> np.ndarray | None:
    """Pixels uint8 or uint16 [H, W]. Colour of a PNG is decoded first: libpng would convert it in linear light."""
    flags = (cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if colour and image is not None else image
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


def _scale_deep(image: np.ndarray) -> GreyImage:
    """uint16 -> float32 in [0, 255], by the smallest bit depth that holds the image."""
    estimate = estimate_depth(image)
    scaled = np.minimum(image, estimate.most).astype(np.float32) * np.float32(255 / estimate.most)
    return GreyImage(scaled, estimate.depth)


@contextlib.contextmanager
def _errors_as_unreadable(head: bytes) -> Iterator[None]:
    """Turn an unforeseen error of a decoder into an UnreadableImageError without the file's data. Mute warnings.

    head: the start of the file. Decoders raise errors of many types for a damaged file. Pillow warns at a lower number
    of pixels than LARGEST_PIXELS.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (UnreadableImageError, InputError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:  # of the disk or of the process
                raise
            raise UnreadableImageError(
                "a DICOM whose header or pixels are damaged or incomplete"
                if is_dicom(head)
                else f"the decoder failed ({type(error).__name__})"
            ) from None
