"""The table of an image set: which file shows which patient, with which content.

Patient identifiers stay here: what is said about an image anywhere else is its place in the table, `index line 4,071`.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from acuity.objectives.errors import InputError
from acuity.objectives.index.cells import Reading
from acuity.objectives.index.folders import place_files
from acuity.objectives.index.formats import FormatName, nearest, read_content


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """One row an image, in the file's order, whatever format the file had."""

    path: Path
    images: Path
    table: pd.DataFrame
    """line (in the file; the header is line 1), file (relative to images), patient, view, age (years), sex (M, F),
    site, split (the part that the index itself names), no_finding (bool: known to show nothing). "" and NaN: not known.
    """
    labels: tuple[str, ...]
    targets: np.ndarray
    """float32 [N, len(labels)]: 1 present, 0 absent, NaN not known."""
    names: Sequence[str]
    """The files as the index names them, wherever they lie below images."""
    set_aside: Mapping[str, str] = field(default_factory=dict)
    """Columns that are no label, and why not."""

    @cached_property
    def sha256(self) -> str:
        """Of file names, patients, labels and targets, in order; the same wherever the folder lies."""
        known = np.isfinite(self.targets)
        digest = _digest(self.labels, self.names, self.table["patient"])
        digest.update(np.where(known, self.targets, -1).astype(np.int8).tobytes())
        return digest.hexdigest()

    @cached_property
    def files_sha256(self) -> str:
        """Of file names alone, in order: the same pixels, whatever is said about them."""
        return _digest(self.names).hexdigest()

    def target(self, label: str) -> np.ndarray:
        """float32 [N] of one label. InputError for one that the index does not have."""
        if label in self.set_aside:
            raise InputError(
                f'"{label}" is a column of {self.path} but no label: {self.set_aside[label]}. A label\'s column has 1 '
                "(present), 0 (absent), -1 (uncertain) or nothing in each line"
            )
        if label not in self.labels:
            raise InputError(f'"{label}" is not a label of {self.path}. {nearest(label, self.labels)}')
        return np.ascontiguousarray(self.targets[:, self.labels.index(label)])

    def image_path(self, row: int) -> Path:
        """Where an image lies; for opening it only, since the name may tell the patient."""
        return self.images / str(self.table["file"].iat[row])

    def place(self, row: int) -> str:
        """How messages and logs name an image: file names and patients do not leave the index."""
        return f"index line {self.table['line'].iat[row]:,}"


def read_index(
    path: Path,
    *,
    images: Path,
    format_name: FormatName | None = None,
    reading: Reading | None = None,
) -> ImageIndex:
    """Read and check the table of an image set (.csv, also gzipped, or Parquet); no image is opened.

    format_name: told by the columns if None. InputError names the line and the rule where a row has no patient, repeats
    a file or leaves the folder.
    """
    content = read_content(path, format_name=format_name, reading=reading)
    table = content.table
    _check_rows(path, table)
    table["file"] = [_normal(file) for file in table["file"]]
    _check_repeats(path, table)
    names = tuple(table["file"])
    root, table["file"] = place_files(images, names, folder=content.folder)
    return ImageIndex(
        path=path,
        images=root,
        table=table,
        labels=content.labels,
        targets=content.targets,
        names=names,
        set_aside=content.set_aside,
    )


def take_rows(index: ImageIndex, rows: np.ndarray) -> ImageIndex:
    """The index with these rows alone: int [M], positions."""
    return replace(
        index,
        table=index.table.iloc[rows].reset_index(drop=True),
        targets=index.targets[rows],
        names=tuple(index.names[row] for row in rows),
    )


def find_missing_images(index: ImageIndex) -> list[int]:
    """Rows whose file is not there: each folder is listed once, since a stat an image is slow on a network disk."""
    if not index.images.is_dir():
        raise InputError(f"{index.images}: no such folder; [data] images names where the index's files lie")
    there: dict[str, set[str]] = {}
    missing = []
    for row, file in enumerate(index.table["file"]):
        folder, name = posixpath.split(file)
        if folder not in there:
            there[folder] = _names_in(index.images / folder)
        if name not in there[folder]:
            missing.append(row)
    return missing


def check_images_present(index: ImageIndex) -> None:
    """InputError with the count and the first line if any image is missing."""
    missing = find_missing_images(index)
    if missing:
        raise InputError(
            f"{index.place(missing[0])}: its file is not in {index.images} ({len(missing):,} of {len(index.table):,} "
            f"files missing in all): complete the folder, take these lines out of {index.path}, or leave such images "
            'out with [data] on_bad_image = "drop"'
        )


def _check_rows(path: Path, table: pd.DataFrame) -> None:
    """InputError for rows without file or patient, or with a path that leaves the folder."""
    file, patient = table["file"].astype(object), table["patient"]
    _refuse(path, table, file == "", "names no file", "give it its image's name, or take the line out")
    _refuse(path, table, patient == "", "has no patient id", "training and test are kept apart by patient: fill it in")
    absolute = file.str.match(r"[/\\]|[A-Za-z]:[/\\]")
    _refuse(path, table, absolute, "has an absolute path", "image paths start at the folder of [data] images")
    upward = file.str.contains(r"(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f]", regex=True)
    _refuse(path, table, upward, "has a path with `..` or a control character in it", "images lie below [data] images")


def _check_repeats(path: Path, table: pd.DataFrame) -> None:
    file = table["file"].astype(object)
    repeated = file.duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        first = table["line"].iat[int((file == file.iat[row]).to_numpy().argmax())]
        what = f"names the same file as line {first:,}"
        _refuse(path, table, repeated, what, "one line an image: take the repeats out")


def _refuse(path: Path, table: pd.DataFrame, faulty: "pd.Series[bool]", what: str, rule: str) -> None:
    rows = np.flatnonzero(faulty.to_numpy())
    if len(rows):
        more = f" ({len(rows):,} such lines in all)" if len(rows) > 1 else ""
        raise InputError(f"{path}: index line {table['line'].iat[rows[0]]:,} {what}{more}; {rule}")


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); the images must be readable here") from None


def _normal(file: str) -> str:
    return posixpath.normpath(file) if "/" in file else file


def _digest(*columns: Iterable[str]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for column in columns:
        digest.update("\0".join(column).encode())
        digest.update(b"\n")
    return digest
