"""Find labels and cells of an index that may be a mistake."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from acuity.objectives.tables.cells import Columns, IndexContent, factorize

_SEPARATORS = re.compile(r"\s*[,;|/&+]\s*|\s+and\s+", re.IGNORECASE)
_ROUNDED = re.compile(r"\d(?:[.,]\d+)?E\+?\d+", re.IGNORECASE)
_MANY_IMAGES, _LARGE_SHARE = 20, 0.1
_EXPECTED = {"sex": "M, F, male or female", "age": "an age of at most 120 years"}


def similar_labels(content: IndexContent) -> Iterator[str]:
    """Labels that differ by case or spaces only, and labels that contain a separator and another label's name."""
    by_word: dict[str, list[str]] = {}
    for label in content.labels:
        by_word.setdefault(_word(label), []).append(label)
    for labels in by_word.values():
        if len(labels) > 1:
            named = " and ".join(_with_count(content, label) for label in labels)
            yield f"Labels that differ by case or spaces only: {named}. They count as different findings."
    for label in content.labels:
        parts = _SEPARATORS.split(label)
        known = [by_word[_word(part)][0] for part in parts if len(parts) > 1 and by_word.get(_word(part))]
        if known:
            yield (
                f'Label {_with_count(content, label)} contains the name of "{known[0]}", which is a label too: its '
                "images do not count as images of that label. If the cell lists several findings, separate them as "
                "the format does."
            )


def unknown_words(columns: Columns, content: IndexContent) -> Iterator[str]:
    """Columns of sex or age of which less than half of the cells that are not blank could be read."""
    for name, expected in _EXPECTED.items():
        cells = columns.text.get(content.headings.get(name, ""))
        if cells is None:
            continue
        is_filled = np.array([bool(cell) for cell in cells])
        if len(is_filled) > len(content.table):  # several rows per image, of which the first counts
            is_filled = is_filled[np.searchsorted(columns.lines, content.table["line"].to_numpy())]
        values = content.table[name]
        unread = is_filled & (values.isna() | (values == "")).to_numpy(bool)
        if unread.sum() > is_filled.sum() / 2:
            yield (
                f"Column {content.headings[name]}: {unread.sum():,} of {is_filled.sum():,} cells are not {expected} "
                f"(index line {_lines(content, unread)}); they count as unknown."
            )


def odd_patients(content: IndexContent) -> Iterator[str]:
    """Patients that may be one, and identifiers that may stand for several patients. No identifier is quoted."""
    if not content.has_patients:
        return
    codes, distinct = factorize(content.table["patient"].to_numpy(object))
    plain, names = factorize([_plain_patient(patient) for patient in distinct])
    several = np.bincount(plain, minlength=len(names)) > 1
    alike = several[plain][codes]
    if alike.any():
        yield (
            f"{several.sum():,} patients are written in several ways, which differ by case, spaces, leading zeros or a "
            f"final .0 only (index line {_lines(content, alike)}). They count as different patients, so one patient "
            "may be in training and test. Write each identifier in one way."
        )
    rounded = np.array([bool(_ROUNDED.fullmatch(patient)) for patient in distinct])[codes]
    if rounded.any():
        yield (
            f"{rounded.sum():,} patient identifiers are numbers in scientific notation (index line "
            f"{_lines(content, rounded)}), as a spreadsheet rounds long numbers. Several patients may then count as "
            "one. Export the identifiers as text."
        )
    images = np.bincount(codes)
    most = int(images.argmax())
    if images[most] >= _MANY_IMAGES and images[most] > _LARGE_SHARE * len(codes) and len(distinct) > 1:
        yield (
            f"One patient has {images[most]:,} of {len(codes):,} images (index line {_lines(content, codes == most)}). "
            "If the identifier is a placeholder, such as unknown or 0, give each of these images its patient."
        )


def _plain_patient(patient: str) -> str:
    return _word(patient).removesuffix(".0").lstrip("0")


def _word(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _with_count(content: IndexContent, label: str) -> str:
    positive = content.targets[:, content.labels.index(label)] == 1
    return f'"{label}" ({positive.sum():,} images, index line {_lines(content, positive)})'


def _lines(content: IndexContent, rows: np.ndarray) -> str:
    lines: Sequence[int] = content.table["line"].to_numpy()[rows][:3].tolist()
    return ", ".join(f"{line:,}" for line in lines) or "-"
