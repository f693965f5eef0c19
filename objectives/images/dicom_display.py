"""Map the stored values of a DICOM radiograph to the grey values that a viewer shows.

Stored values pass the modality transformation (DICOM PS3.3 C.11.1), then the VOI LUT or window (C.11.2). Both are
applied to a table of all stored values, not to each pixel.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from acuity.objectives.errors import UnreadableImageError
from acuity.objectives.images.depth import estimate_depth
from acuity.objectives.images.grey import GreyImage, check_variation

if TYPE_CHECKING:
    from pydicom import Dataset


def map_to_grey(dataset: "Dataset", stored: np.ndarray, *, bits: int) -> GreyImage:
    """Grey of each pixel, float32 [H, W] from 0 (black) to 255 (white). stored: int or uint [H, W].

    Applies rescale or modality LUT, then the first VOI LUT or else the first window, and inverts MONOCHROME1. Without
    VOI LUT and window, the range of the stored bits goes from black to white. If 16 bits are stored, the range is that
    of the smallest depth that holds the image (`estimate_depth`). Declared padding is black and does not count for the
    depth (C.7.5.1.1.2).
    """
    signed = stored.dtype.kind == "i"
    lowest, largest = stored_range(bits, signed=signed)
    padding = _padding(dataset, stored, signed=signed)
    native = stored if padding is None else stored[~padding]
    if not native.size:
        raise UnreadableImageError("shows nothing: every pixel is padding")
    depth = None
    if bits == 16 and not dataset.get("VOILUTSequence") and _window(dataset) is None:
        estimate = estimate_depth(native)
        depth, lowest, largest = estimate.depth, estimate.least, estimate.most
    shown = _to_unit(dataset, np.arange(lowest, largest + 1))
    if not np.isfinite(shown).all():
        raise UnreadableImageError("a DICOM whose rescale, LUT or window is not a number")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    # pydicom has cleared the bits above the stored ones, where older files keep overlays.
    positions = np.clip(stored, lowest, largest).astype(np.int32) - lowest
    grey: np.ndarray = (255 * shown).astype(np.float32)[positions]
    if padding is not None:
        check_variation(grey[~padding])
        grey[padding] = 0
    return GreyImage(grey, depth)


def stored_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """The least and the largest value of these bits."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _padding(dataset: "Dataset", stored: np.ndarray, *, signed: bool) -> np.ndarray | None:
    """bool [H, W]: pixels that the file declares as padding (C.7.5.1.1.2). None if it declares none."""

    def stored_value(name: str) -> int | None:
        value = dataset.get(name)
        if value is None or value == "":
            return None
        # Some files write the value with the other sign.
        bits = 8 * stored.dtype.itemsize
        number = int(value) % (1 << bits)
        return number - (1 << bits) if signed and number >= 1 << bits - 1 else number

    first = stored_value("PixelPaddingValue")
    if first is None:
        return None
    last = stored_value("PixelPaddingRangeLimit")
    bounds = sorted((first, first if last is None else last))
    padding: np.ndarray = (stored >= bounds[0]) & (stored <= bounds[1])
    return padding


def _to_unit(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Grey in [0, 1] of each stored value. values: every possible stored value, ascending."""
    slope, intercept = _rescale(dataset)
    if dataset.get("ModalityLUTSequence"):
        output, most = _look_up(dataset, dataset.ModalityLUTSequence[0], values)
        least = 0.0
    else:
        output, least, most = values * slope + intercept, 0.0, 0.0
    if dataset.get("VOILUTSequence"):
        output, most = _look_up(dataset, dataset.VOILUTSequence[0], np.rint(output).astype(np.int64))
        return output / most
    window = _window(dataset)
    if window is None:
        if not dataset.get("ModalityLUTSequence"):
            output = values * np.sign(slope)  # a tiny slope beside a large intercept loses digits
            least, most = float(output.min()), float(output.max())
        return (output - least) / (most - least)
    centre, width = window
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (output - centre) / width)))
    # C.11.2.1.2.1: LINEAR is defined for integers and for widths from 1, where 1 is a threshold. Files whose slope
    # makes fractions have smaller widths, which only LINEAR_EXACT can mean.
    if function == "LINEAR" and (width > 1 or (width == 1 and abs(slope) >= 1)):
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((output - centre) / width + 0.5, 0, 1)


def _rescale(dataset: "Dataset") -> tuple[float, float]:
    """Rescale slope and intercept. 1 and 0 if there are none, or if the slope is 0 or not finite."""
    slope, intercept = (_number(dataset, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None:
        slope = 1.0
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept or 0):
        return 1.0, 0.0
    return slope, intercept or 0.0


def _window(dataset: "Dataset") -> tuple[float, float] | None:
    """Centre and width of the first window. None if there is no usable window."""
    centre, width = (_number(dataset, name) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        return None
    return centre, width


def _number(dataset: "Dataset", name: str) -> float | None:
    """The first value of an element. None if it is absent or blank."""
    value: Any = dataset.get(name)
    value = value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value
    return None if value is None or value == "" else float(value)


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
