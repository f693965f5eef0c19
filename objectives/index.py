"""The table of an image set: which file shows which patient, with which findings.

Patient identifiers stay here: what is said about an image anywhere else is its place in the table, `index line 4,071`.
"""

import hashlib
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from objectives.errors import InputError
from objectives.index_formats import Findings, nearest, read_findings


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """One row an image, in the file's order, whatever format the file had."""

    path: Path
    images: Path
    table: pd.DataFrame
    """line (in the file; the header is line 1), file (relative to images), patient, view, age (years), sex (M, F)."""
    labels: tuple[str, ...]
    targets: np.ndarray
    """float32 [N, len(labels)]: 1 present, 0 absent, NaN not known."""
    sha256: str
    """Of file names, patients, labels and targets, in order; the same wherever the folder lies."""

    def target(self, label: str) -> np.ndarray:
        """float32 [N] of one label. InputError for one that the index does not have."""
        if label not in self.labels:
            raise InputError(f'"{label}" is not a label of {self.path}. {nearest(label, self.labels)}')
        return np.ascontiguousarray(self.targets[:, self.labels.index(label)])

    def image_path(self, row: int) -> Path:
        """Where an image lies; for opening it only, since the name may tell the patient."""
        return self.images / str(self.table["file"].iat[row])

    def place(self, row: int) -> str:
        """How messages and logs name an image: file names and patients do not leave the index."""
        return f"index line {self.table['line'].iat[row]:,}"


def read_index(path: Path, *, images: Path) -> ImageIndex:
    """Read and check the table of an image set (.csv, also gzipped); the images themselves are not touched.

    InputError names the line and the rule where a row has no patient, repeats a file or leaves the folder.
    """
    findings = read_findings(path)
    _check_rows(path, findings.table)
    return ImageIndex(
        path=path,
        images=images,
        table=findings.table,
        labels=findings.labels,
        targets=findings.targets,
        sha256=_digest(findings),
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
            f"files missing in all): complete the folder, or take these lines out of {index.path}"
        )


def _check_rows(path: Path, table: pd.DataFrame) -> None:
    """InputError for rows without file or patient, with a path that leaves the folder, or with a repeated file."""
    file, patient = table["file"].astype(object), table["patient"]
    _refuse(path, table, file == "", "names no file", "give it its image's name, or take the line out")
    _refuse(path, table, patient == "", "has no patient id", "training and test are kept apart by patient: fill it in")
    absolute = file.str.match(r"[/\\]|[A-Za-z]:[/\\]")
    _refuse(path, table, absolute, "has an absolute path", "image paths start at the folder of [data] images")
    upward = file.str.contains(r"(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f]", regex=True)
    _refuse(path, table, upward, "has a path with `..` or a control character in it", "images lie below [data] images")
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


def _digest(findings: Findings) -> str:
    digest = hashlib.sha256()
    for column in (findings.labels, findings.table["file"], findings.table["patient"]):
        digest.update("\0".join(column).encode())
        digest.update(b"\n")
    known = np.isfinite(findings.targets)
    digest.update(np.where(known, findings.targets, -1).astype(np.int8).tobytes())
    return digest.hexdigest()
