"""Decode a DICOM radiograph to the grey values that a viewer shows.

Stored values pass the modality transformation (DICOM PS3.3 C.11.1), then the VOI LUT or window (C.11.2). Both are
applied to a table of all stored values, not to each pixel. pydicom reads the file and its plugins decompress it. They
are the optional extra `acuity-hpo[dicom]`.
"""

import contextlib
import importlib
import warnings
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np

from acuity.objectives.errors import InputError, UnreadableImageError

if TYPE_CHECKING:
    from pydicom import Dataset

_INSTALL = "pip install 'acuity-hpo[dicom]'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 1 << 30
BIT_DEPTHS = (8, 10, 12, 14, 16)


def is_dicom(data: bytes) -> bool:
    """True for a DICOM file. data: the first 132 bytes of the file, or more."""
    return data[128:132] == b"DICM"


def open_dicom(file: IO[bytes], *, header_only: bool = False) -> "Dataset":
    """Read a DICOM file. header_only: without the pixels.

    InputError if pydicom is not installed. UnreadableImageError with the object's kind if it is not a single image.
    """
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError:
        raise InputError(f"these images are DICOM files, which need pydicom to be read: {_INSTALL}") from None
    _check_inflated(file)
    with _errors_as_unreadable():
        dataset: Dataset = pydicom.dcmread(file, stop_before_pixels=header_only)
        kind = str(dataset.get("SOPClassUID", pydicom.uid.UID("")).name) or "DICOM of no class"
        frames = int(dataset.get("NumberOfFrames") or 1)
        size = dicom_size(dataset) if "Rows" in dataset and "Columns" in dataset else (0, 0)
        holds_pixels = header_only or "PixelData" in dataset
    if min(size) < 1 or not holds_pixels:
        raise UnreadableImageError(f"{kind}: a DICOM object without an image")
    if frames != 1:
        raise UnreadableImageError(f"{kind}: a DICOM of {frames:,} frames, must be one radiograph a file")
    return dataset


def dicom_size(dataset: "Dataset") -> tuple[int, int]:
    """Height and width of the stored image."""
    return int(dataset.Rows), int(dataset.Columns)


def dicom_grey(dataset: "Dataset") -> np.ndarray:
    """Decompress to grey: float32 [H, W] from 0 (black) to 255 (white).

    Applies rescale or modality LUT, then the first VOI LUT or else the first window, and inverts MONOCHROME1. Without
    VOI LUT and window, the range of the stored bits goes from black to white. If 16 bits are stored, the range is that
    of the smallest depth (8, 10, 12, 14, 16) that holds the image, signed only if a value is below 0. Colour becomes
    luminance.
    """
    _check_decoder(dataset)
    with _errors_as_unreadable():
        bits = int(dataset.BitsStored)
        photometric = str(dataset.PhotometricInterpretation)
    monochrome = photometric in ("MONOCHROME1", "MONOCHROME2")
    if not monochrome and photometric != "RGB" and not photometric.startswith("YBR"):
        raise UnreadableImageError(f"a DICOM in {photometric}, must be MONOCHROME1, MONOCHROME2 or RGB")
    if bits > 16:
        raise UnreadableImageError(f"a DICOM of {bits} bits a pixel, must be 16 at most")
    with _errors_as_unreadable():
        _check_coded_size(dataset)
        stored: np.ndarray = dataset.pixel_array
        if not monochrome:
            luminance: np.ndarray = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY).astype(np.float32)
            return luminance * np.float32(255 / ((1 << bits) - 1))
        return _show(dataset, stored, bits)


def _show(dataset: "Dataset", stored: np.ndarray, bits: int) -> np.ndarray:
    """Map stored values to grey through a table: float32 [H, W]."""
    has_voi = bool(dataset.get("VOILUTSequence")) or _window(dataset) is not None
    signed = dataset.PixelRepresentation == 1
    lowest, largest = _stored_range(bits, signed=signed)
    if bits == 16 and not has_voi:
        least, most = int(stored.min()), int(stored.max())
        ranges = (_stored_range(depth, signed=least < 0) for depth in BIT_DEPTHS)
        low, high = next((low, high) for low, high in ranges if low <= least and most <= high)
        lowest, largest = low, min(high, largest)
    # pydicom has cleared the bits above the stored ones, where older files keep overlays.
    positions = np.clip(stored, lowest, largest).astype(np.int32) - lowest if signed else stored
    shown = _to_unit(dataset, np.arange(lowest, largest + 1))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    image: np.ndarray = (255 * shown).astype(np.float32)[positions]
    return image


def _stored_range(bits: int, *, signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _to_unit(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Grey in [0, 1] of each stored value. values: every possible stored value, ascending."""
    if dataset.get("ModalityLUTSequence"):
        output, most = _look_up(dataset, dataset.ModalityLUTSequence[0], values)
        least = 0.0
    else:
        slope, intercept = (dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
        output = values * float(1 if slope is None else slope) + float(intercept or 0)
        least, most = float(output.min()), float(output.max())
    if dataset.get("VOILUTSequence"):
        output, most = _look_up(dataset, dataset.VOILUTSequence[0], np.rint(output).astype(np.int64))
        return output / most
    window = _window(dataset)
    if window is None:
        return (output - least) / max(most - least, 1)
    centre, width = window
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (output - centre) / width)))
    if function == "LINEAR":  # C.11.2.1.2.1, where a width of 1 is a threshold
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((output - centre) / width + 0.5, 0, 1)


def _window(dataset: "Dataset") -> tuple[float, float] | None:
    """Centre and width of the first window. None if there is no usable window."""
    values = []
    for name in ("WindowCenter", "WindowWidth"):
        value: Any = dataset.get(name)
        value = value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value
        if value is None or value == "":
            return None
        values.append(float(value))
    return (values[0], values[1]) if values[1] > 0 else None


def _look_up(dataset: "Dataset", table: "Dataset", values: np.ndarray) -> tuple[np.ndarray, float]:
    """The LUT's output for each value, and its largest possible output.

    Values beyond the LUT map to its first or last entry (C.11.1.1).
    """
    entries, first, bits = (int(value) for value in table.LUTDescriptor)
    data = table.LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * (entries or 1 << 16)
        data = np.frombuffer(data, dtype=("<u2" if dataset.original_encoding[1] else ">u2") if wide else np.uint8)
    output = np.asarray(data, dtype=np.float64)[: entries or 1 << 16]
    return output[np.clip(values - first, 0, len(output) - 1)], max((1 << bits) - 1, output.max())


def _check_decoder(dataset: "Dataset") -> None:
    from pydicom.pixels.decoders.base import get_decoder

    with _errors_as_unreadable():
        syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImageError(f"a DICOM in {syntax.name}, which is not read") from None
    if not decoder.is_available:
        raise InputError(f"these images are DICOM files in {syntax.name}, which need a decoder: {_INSTALL}")


def _check_coded_size(dataset: "Dataset") -> None:
    """ValueError if the codestream is truncated or declares another size than the file, which may be gigabytes."""
    from pydicom.encaps import get_frame

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    size = _coded_size(frame)
    if size is not None and size != dicom_size(dataset):
        raise ValueError("another size")
    # Decoders fill missing pixels with grey.
    if size is not None and not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise ValueError("truncated")


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG, JPEG-LS or JPEG 2000 codestream, else None."""
    if frame.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = (int.from_bytes(frame[i : i + 4]) for i in (8, 12, 16, 20))
        return bottom - top, right - left
    position = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while position + 9 < len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = frame[position + 5 : position + 7], frame[position + 7 : position + 9]
            return int.from_bytes(height), int.from_bytes(width)
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4])
    return None


def _check_inflated(file: IO[bytes]) -> None:
    """UnreadableImageError if a deflated file unpacks to more than 1 GiB. pydicom unpacks the whole file at once."""
    head = file.read(1 << 12)
    if _DEFLATED in head:
        # The deflated part follows 144 bytes (preamble and group length element) and the meta group of that length.
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read()
        with _errors_as_unreadable():
            while rest:
                size += len(inflater.decompress(rest, 1 << 20))
                if size > _MAX_INFLATED_BYTES:
                    raise UnreadableImageError("a deflated DICOM of more than 1 GiB")
                rest = inflater.unconsumed_tail
    file.seek(0)


@contextlib.contextmanager
def _errors_as_unreadable() -> Iterator[None]:
    """Turn any error of pydicom or its plugins into an UnreadableImageError without the file's data. Mute warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (UnreadableImageError, InputError, MemoryError):
            raise
        except Exception:
            raise UnreadableImageError("a DICOM whose header or pixels are damaged or incomplete") from None
