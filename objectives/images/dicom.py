"""Read a DICOM radiograph, and refuse a file that does not hold one whole image.

pydicom reads the file and its plugins decompress it. They are the optional extra `acuity-hpo[dicom]`. Their errors, of
any type, mean a damaged file: the caller turns them into an UnreadableImageError.
"""

import importlib
import zlib
from typing import IO, TYPE_CHECKING

import cv2
import numpy as np

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.codestream import coded_size, codestream_end
from acuity.objectives.images.dicom_display import map_to_grey, stored_range
from acuity.objectives.images.grey import GreyImage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

_INSTALL = "pip install 'acuity-hpo[dicom]'"
_META_GROUP = b"\x02\0\0\0UL\x04\0"
"""The first element of a Part 10 file, which follows the preamble."""
_GROUP_8_VRS = (b"UL", b"CS", b"UI", b"DA", b"TM", b"LO", b"SH")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 1 << 27
"""Radiographs have 40 MiB at most. pydicom keeps several copies: 612 KB of a file took 3.1 GB with a limit of 1 GiB."""


def is_dicom(data: bytes) -> bool:
    """True for a DICOM file, also without preamble. data: the first 132 bytes of the file, or more."""
    return _has_preamble(data) or data.startswith(_META_GROUP) or _is_bare_dataset(data)


def _has_preamble(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def _is_bare_dataset(data: bytes) -> bool:
    """True for a dataset that begins with an element of group 0008, as older archives write it without any header."""
    if len(data) < 8 or data[:2] != b"\x08\0" or data[3] != 0:
        return False
    return data[4:6] in _GROUP_8_VRS or int.from_bytes(data[4:8], "little") <= 256


def open_dicom(file: IO[bytes], *, header_only: bool = False) -> "Dataset":
    """Read a DICOM file. header_only: without the pixels.

    InputError if pydicom is not installed. UnreadableImageError with the object's kind if it is not a single image.
    """
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError:
        raise InputError(f"these images are DICOM files, which need pydicom to be read: {_INSTALL}") from None
    _check_inflated(file)
    head = file.read(132)
    file.seek(0)
    dataset: Dataset = pydicom.dcmread(file, stop_before_pixels=header_only, force=not _has_preamble(head))
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _syntax_of_bare_dataset(dataset)
    kind = str(dataset.get("SOPClassUID", pydicom.uid.UID("")).name) or "DICOM of no class"
    frames = int(dataset.get("NumberOfFrames") or 1)
    size = dicom_size(dataset) if "Rows" in dataset and "Columns" in dataset else (0, 0)
    holds_pixels = header_only or "PixelData" in dataset
    if min(size) < 1 or not holds_pixels:
        raise UnreadableImageError(f"{kind}: a DICOM object without an image")
    if frames != 1:
        raise UnreadableImageError(f"{kind}: a DICOM of {frames:,} frames, must be one radiograph a file")
    return dataset


def _syntax_of_bare_dataset(dataset: "Dataset") -> "UID":
    """The uncompressed transfer syntax in which pydicom has read a dataset without header."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    is_implicit, is_little_endian = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def dicom_size(dataset: "Dataset") -> tuple[int, int]:
    """Height and width of the stored image."""
    return int(dataset.Rows), int(dataset.Columns)


def dicom_grey(dataset: "Dataset") -> GreyImage:
    """Decompress to grey: float32 [H, W] from 0 (black) to 255 (white). Colour becomes luminance."""
    _check_decoder(dataset)
    bits = int(dataset.BitsStored)
    photometric = str(dataset.PhotometricInterpretation)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    monochrome = photometric in ("MONOCHROME1", "MONOCHROME2")
    if not monochrome and photometric != "RGB" and not photometric.startswith("YBR"):
        raise UnreadableImageError(f"a DICOM in {photometric}, must be MONOCHROME1, MONOCHROME2 or RGB")
    if samples != (1 if monochrome else 3):
        raise UnreadableImageError(f"a DICOM of {samples} samples a pixel in {photometric}")
    if bits > 16:
        raise UnreadableImageError(f"a DICOM of {bits} bits a pixel, must be 16 at most")
    _check_coded_size(dataset)
    _check_native_size(dataset)
    if monochrome:
        stored, bits = _stored_values(dataset, bits)
        return map_to_grey(dataset, stored, bits=bits)
    colour = _decompress(dataset, samples)
    luminance: np.ndarray = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return GreyImage(luminance * np.float32(255 / ((1 << bits) - 1)))


def _decompress(dataset: "Dataset", samples: int) -> np.ndarray:
    """The stored pixels. UnreadableImageError if their shape is not that of the header."""
    pixels: np.ndarray = dataset.pixel_array
    if pixels.shape != (dicom_size(dataset) if samples == 1 else (*dicom_size(dataset), samples)):
        raise UnreadableImageError("a DICOM whose pixels do not have the size that its header declares")
    return pixels


def _stored_values(dataset: "Dataset", bits: int) -> tuple[np.ndarray, int]:
    """The stored values, int or uint [H, W], and the number of their bits.

    HighBit is BitsStored - 1 in every file that follows the standard of today. Older files have another HighBit with
    left-justified values, or with right-justified ones under that header: the used bits decide. UnreadableImageError
    if the values are neither.
    """
    declared = dataset.get("HighBit")
    high_bit = bits - 1 if declared is None or declared == "" else int(declared)
    if high_bit == bits - 1:
        return _decompress(dataset, 1), bits
    # pydicom clears the bits above BitsStored.
    allocated, signed = int(dataset.BitsAllocated), dataset.PixelRepresentation == 1
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = allocated, allocated - 1, 0
    whole = _decompress(dataset, 1)
    dataset.PixelRepresentation = int(signed)
    values = whole.view(whole.dtype.str.replace("u", "i")) if signed else whole
    least, most = stored_range(bits, signed=signed)
    stored_bits, shift = bits, high_bit + 1 - bits
    if shift < 0:  # fewer bits than BitsStored
        bits = high_bit + 1
        least, most = stored_range(bits, signed=signed)
    elif not (values & ((1 << shift) - 1)).any() and high_bit < allocated:
        return values >> shift, bits
    if signed and whole.max() < 1 << bits:  # the bits above the sign are cleared
        return values << (allocated - bits) >> (allocated - bits), bits
    if values.min() < least or values.max() > most:
        raise UnreadableImageError(
            f"a DICOM whose BitsStored is {stored_bits} and HighBit {high_bit}, but whose pixels use other bits"
        )
    return values, bits


def _check_decoder(dataset: "Dataset") -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImageError(f"a DICOM in {syntax.name}, which is not read") from None
    if not decoder.is_available:
        raise InputError(f"these images are DICOM files in {syntax.name}, which need a decoder: {_INSTALL}")


def _check_native_size(dataset: "Dataset") -> None:
    """UnreadableImageError if an uncompressed file holds the pixels of several frames without saying so."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    height, width = dicom_size(dataset)
    frame = height * width * int(dataset.get("SamplesPerPixel") or 1) * int(dataset.BitsAllocated) // 8
    if len(dataset.PixelData) >= 2 * frame:
        raise UnreadableImageError("a DICOM whose pixels do not have the size that its header declares")


def _check_coded_size(dataset: "Dataset") -> None:
    """ValueError if the codestream is truncated or declares another size than the file, which may be gigabytes."""
    from pydicom.encaps import get_frame

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    size = coded_size(frame)
    if size is not None and size != dicom_size(dataset):
        raise ValueError("another size")
    # Decoders fill missing pixels with grey.
    if size is not None and codestream_end(frame) is None:
        raise ValueError("truncated")


def _check_inflated(file: IO[bytes]) -> None:
    """UnreadableImageError if a deflated file unpacks to more than 128 MiB. pydicom unpacks the whole file at once."""
    head = file.read(1 << 12)
    if _DEFLATED in head:
        # The deflated part follows the preamble, the group length element of 12 bytes, and the group of that length.
        first = 144 if _has_preamble(head) else 12
        file.seek(first + int.from_bytes(head[first - 4 : first], "little"))
        inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read()
        while rest:
            size += len(inflater.decompress(rest, 1 << 20))
            if size > _MAX_INFLATED_BYTES:
                raise UnreadableImageError("a deflated DICOM of more than 128 MiB")
            rest = inflater.unconsumed_tail
    file.seek(0)
