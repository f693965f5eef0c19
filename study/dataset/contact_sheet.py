"""A picture of what the networks see: images of each label at each resolution, and the oddest images of the set.

The arrays are drawn with 0 as black and 255 as white. Networks get the same pixels, shifted and scaled by two
constants. The sheet names an image by its index line alone. Images may have text in them, so it is patient data.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from acuity.objectives.atomic_write import write_atomically
from acuity.study.dataset.image_set import ImageSet
from acuity.study.errors import UsageError

_TILES = 4
"""Images per group: positive or negative ones of a label."""
_LARGEST_TILE, _SMALLEST_TILE = 256, 96
_LONGEST_SHEET = 8000
_GAP, _CAPTION, _HEADING, _MARGIN = 4, 20, 32, 72
_INK, _PAPER, _FRAME = (20, 20, 20), (255, 255, 255), (150, 60, 0)
_CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class _Group:
    """Images side by side under one heading."""

    heading: str
    rows: Sequence[int]
    notes: Sequence[str]
    """A caption for each image."""


def write_contact_sheet(image_set: ImageSet, labels: Sequence[str], resolutions: Sequence[int], path: Path) -> None:
    """Write the sheet as PNG. A block per label, then the oddest images; in each block a row per resolution.

    The images of labels are drawn from the training part, the same ones at each call. UsageError if the file cannot be
    written.
    """
    blocks = [_of_label(image_set, label) for label in labels] + list(_odd(image_set, min(resolutions)))
    sheet = _draw(image_set, blocks, sorted(set(resolutions)))
    data = io.BytesIO()
    sheet.save(data, format="png")
    try:
        write_atomically(path, data.getvalue())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; name another file with --look") from None


def check_sheet_name(path: Path) -> None:
    """UsageError if the file is no .png: a wrong name must not replace an index."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} must end in .png: --look names the picture to write")


def _of_label(image_set: ImageSet, label: str) -> list[_Group]:
    target = image_set.index.target(label)
    training = image_set.split.rows("training")
    groups = []
    for word, value in (("positive", 1), ("negative", 0)):
        rows = training[target[training] == value]
        drawn = np.sort(np.random.default_rng(0).permutation(rows)[:_TILES])
        groups.append(_Group(f"{label}: {word} ({len(rows):,} in training)", drawn.tolist(), _lines(image_set, drawn)))
    return groups


def _odd(image_set: ImageSet, resolution: int) -> Iterator[list[_Group]]:
    """Two blocks: darkest and brightest, least variation and most padding.

    Bad images are left out, and so are images without padding in the last group.
    """
    rows = np.setdiff1d(np.arange(len(image_set.index.table)), [image.row for image in image_set.cache.bad])
    mean, deviation, padding = _measure(image_set.cache.open(resolution), rows)

    def group(heading: str, rows: NDArray[np.int64], values: NDArray[np.float64], sign: int, form: str) -> _Group:
        order = np.argsort(sign * values, kind="stable")[:_TILES]
        notes = [
            f"{name}: {value:{form}}" for name, value in zip(_lines(image_set, rows[order]), values[order], strict=True)
        ]
        return _Group(heading, rows[order].tolist(), notes)

    yield [
        group("Darkest: mean grey of 255", rows, mean, 1, ".0f"),
        group("Brightest: mean grey of 255", rows, mean, -1, ".0f"),
    ]
    is_padded = padding > 0
    heading = "Most padding: share of rows and columns of one grey" if is_padded.any() else "No image has padding"
    yield [
        group("Least variation: standard deviation", rows, deviation, 1, ".0f"),
        group(heading, rows[is_padded], padding[is_padded], -1, ".0%"),
    ]


def _measure(
    images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean grey, standard deviation, and share of rows and columns of one grey, of these rows: float64 [N] each."""
    measured = []
    step = max(1, _CHUNK_BYTES // images[0].nbytes)
    for start in range(0, len(rows), step):
        some = images[rows[start : start + step]]
        plain_rows = (some.max(axis=2) == some.min(axis=2)).mean(axis=1)
        plain_columns = (some.max(axis=1) == some.min(axis=1)).mean(axis=1)
        flat = some.reshape(len(some), -1)
        measured.append([flat.mean(axis=1), flat.std(axis=1), 1 - (1 - plain_rows) * (1 - plain_columns)])
    mean, deviation, padding = (np.concatenate(values) for values in zip(*measured, strict=True))
    return mean, deviation, padding


def _lines(image_set: ImageSet, rows: NDArray[np.int64]) -> list[str]:
    return [f"line {image_set.index.table['line'].iat[row]:,}" for row in rows]


def _draw(image_set: ImageSet, blocks: Sequence[Sequence[_Group]], resolutions: Sequence[int]) -> Image.Image:
    most = (_LONGEST_SHEET // len(blocks) - _HEADING - _CAPTION) // len(resolutions) - _GAP
    tile = int(np.clip(min(max(resolutions), most), _SMALLEST_TILE, _LARGEST_TILE))
    width = _MARGIN + 2 * _TILES * (tile + _GAP) + 4 * _GAP
    block_height = _HEADING + _CAPTION + len(resolutions) * (tile + _GAP)
    sheet = Image.new("RGB", (width, len(blocks) * block_height + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading_font, font = _font("DejaVuSans-Bold.ttf", 16), _font("DejaVuSans.ttf", 14 if tile > 150 else 11)
    arrays = {resolution: image_set.cache.open(resolution) for resolution in resolutions}
    for number, block in enumerate(blocks):
        top = number * block_height + _GAP
        for line, resolution in enumerate(resolutions):
            y = top + _HEADING + _CAPTION + line * (tile + _GAP) + tile // 2 - 7
            draw.text((_GAP, y), f"{resolution} px", font=font, fill=_INK)
        for part, group in enumerate(block):
            left = _MARGIN + part * (_TILES * (tile + _GAP) + 4 * _GAP)
            room = _TILES * (tile + _GAP)
            draw.text(
                (left, top + 6), _shortened(draw, group.heading, heading_font, room), font=heading_font, fill=_INK
            )
            for place, (row, note) in enumerate(zip(group.rows, group.notes, strict=True)):
                x = left + place * (tile + _GAP)
                draw.text((x, top + _HEADING), _shortened(draw, note, font, tile), font=font, fill=_INK)
                for line, resolution in enumerate(resolutions):
                    y = top + _HEADING + _CAPTION + line * (tile + _GAP)
                    sheet.paste(Image.fromarray(_resized(arrays[resolution][row], tile)), (x, y))
                    draw.rectangle((x - 1, y - 1, x + tile, y + tile), outline=_FRAME)
    return sheet


def _resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Each pixel as a square where the image is smaller, else the mean of the pixels."""
    method = cv2.INTER_AREA if len(image) > side else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=method).astype(np.uint8)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl  # for its fonts, which have the letters of most languages

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis if it is longer than width px."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font=font) > width:
        text = text[:-1]
    return f"{text}…"
