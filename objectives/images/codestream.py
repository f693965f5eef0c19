"""Walk through the segments of a JPEG, JPEG-LS or JPEG 2000 codestream (ITU-T T.81, T.87, T.800)."""

import re
from collections.abc import Iterator

_START = b"\xff\xd8"
_END = 0xD9
_SCAN = 0xDA
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_TILE_PART = b"\xff\x90"
_NO_LENGTH = (0x01, *range(0xD0, 0xD9))
"""Markers without a segment: TEM, RST0 to RST7, SOI."""
_NEXT_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd8-\xfe])")
"""In coded pixels FF is followed by 00 (JPEG), by less than 80 (JPEG-LS) or by RST0 to RST7."""


def codestream_end(data: bytes) -> int | None:
    """The position behind the end marker of the codestream at the start of the data. None if it is truncated.

    What follows the codestream may be anything. The result is None too if the data are no codestream.
    """
    if data.startswith(_JPEG_2000_START):
        return _jpeg_2000_end(data)
    return next((end for marker, _, end in _segments(data) if marker == _END), None)


def without_gaps(data: bytes) -> bytes:
    """The JPEG without surplus bytes between the segments before its first scan.

    libjpeg skips these bytes, but reports them as it reports lost pixels, and it reports its first complaint alone.
    """
    kept = [_START]
    for marker, first, end in _segments(data):
        if marker == _SCAN:
            return b"".join((*kept, data[first:])) if sum(map(len, kept)) < first else data
        kept.append(data[first:end])
    return data


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG, JPEG-LS or JPEG 2000 codestream, else None."""
    if frame.startswith(_JPEG_2000_START):
        right, bottom, left, top = (int.from_bytes(frame[i : i + 4]) for i in (8, 12, 16, 20))
        return bottom - top, right - left
    for marker, first, _ in _segments(frame):
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[first + 5 : first + 7]), int.from_bytes(frame[first + 7 : first + 9])
        if marker == _SCAN:
            return None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, position of its FF, position behind its segment) up to the end marker or the end of the data.

    A scan's segment is its header. The coded pixels behind it are skipped.
    """
    position = 2 if data.startswith(_START) else len(data)
    while found := _NEXT_MARKER.search(data, position):
        marker, first = data[found.end() - 1], found.end() - 2
        length = 0 if marker in (*_NO_LENGTH, _END) else int.from_bytes(data[found.end() : found.end() + 2])
        position = found.end() + length
        if position > len(data):
            return
        yield marker, first, position
        if marker == _END:
            return


def _jpeg_2000_end(data: bytes) -> int | None:
    """Jump from tile part to tile part by their lengths. A length of 0 means the last part, up to the end marker."""
    position = data.find(_TILE_PART)
    while position >= 0 and data[position : position + 2] == _TILE_PART:
        length = int.from_bytes(data[position + 6 : position + 10])
        if not length:
            position = data.rfind(b"\xff\xd9")
            break
        position += length
    return position + 2 if position >= 0 and data[position : position + 2] == b"\xff\xd9" else None
