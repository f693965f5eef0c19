"""The index of an image set: each image's file, patient, labels and view.

File names and patient identifiers stay in the index. Messages and logs name an image by its line: `index line 4,071`.
"""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from acuity.objectives.errors import InputError
from acuity.objectives.index.folders import locate_files
from acuity.objectives.tables.cells import LabelPolicy
from acuity.objectives.tables.column_mapping import ColumnMapping, FormatName
from acuity.objectives.tables.content import read_content
from acuity.objectives.tables.names import suggest_name


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """One row per image, in the order of the index file."""

    path: Path
    images: Path
    table: pd.DataFrame
    """line (of the file; the header is line 1), file (relative to images), patient, view, age (years), sex (M or F),
    site, split (the part that the index itself names), no_finding (bool: known to have no finding). "" and NaN are
    unknown.
    """
    labels: tuple[str, ...]
    targets: np.ndarray
    """float32 [N, len(labels)]: 1 present, 0 absent, NaN unknown."""
    names: Sequence[str]
    """File names as the index writes them, without the folders that `locate_files` adds."""
    rejected_columns: Mapping[str, str] = field(default_factory=dict)
    """Name of each column that is not a label -> the reason."""
    suspicions: tuple[str, ...] = ()
    """Facts about cells and labels that may be a mistake, with counts and examples."""
    format_name: FormatName = "table"
    has_patients: bool = True
    """False if each image counts as a patient, since the table names no patients."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of file names, patients, labels and targets, in order. Independent of the folder of images."""
        known = np.isfinite(self.targets)
        digest = _digest(self.labels, self.names, self.table["patient"])
        digest.update(np.where(known, self.targets, -1).astype(np.int8).tobytes())
        return digest.hexdigest()

    @cached_property
    def files_sha256(self) -> str:
        """SHA-256 of the file names, in order. Independent of labels and patients."""
        return _digest(self.names).hexdigest()

    def target(self, label: str) -> np.ndarray:
        """float32 [N] of one label. InputError for a label that the index does not have."""
        if label in self.rejected_columns:
            raise InputError(
                f'"{label}" is a column of {self.path} but no label: {self.rejected_columns[label]}. A label\'s column '
                "has 1 (present), 0 (absent), -1 (uncertain) or nothing in each line; other words are given by [data] "
                "columns.values, such as values = { YES = 1, NO = 0 }"
            )
        if label not in self.labels:
            raise InputError(f'"{label}" is not a label of {self.path}. {suggest_name(label, self.labels)}')
        return np.ascontiguousarray(self.targets[:, self.labels.index(label)])

    def image_path(self, row: int) -> Path:
        """The path of an image, to open it only: a file name may identify the patient."""
        return self.images / str(self.table["file"].iat[row])

    def row_name(self, row: int) -> str:
        """The name of an image in messages and logs, without file name and patient: `index line 4,071`."""
        return f"index line {self.table['line'].iat[row]:,}"


def read_index(
    path: Path,
    *,
    images: Path,
    format_name: FormatName | None = None,
    mapping: ColumnMapping | None = None,
    policy: LabelPolicy | None = None,
) -> ImageIndex:
    """Read and check the table of an image set. Opens no image.

    format_name, mapping, policy: as in `read_content`. InputError names the line and the rule if a row has no patient,
    repeats a file or has a path outside the folder of images.
    """
    content = read_content(path, format_name=format_name, mapping=mapping, policy=policy)
    table = content.table
    _check_rows(path, table)
    table["file"] = [_normalize(file) for file in table["file"]]
    _check_repeated_files(path, table)
    names = tuple(table["file"])
    root, table["file"] = locate_files(images, names, folder=content.folder)
    return ImageIndex(
        path=path,
        images=root,
        table=table,
        labels=content.labels,
        targets=content.targets,
        names=names,
        rejected_columns=content.rejected_columns,
        suspicions=content.suspicions,
        format_name=content.format_name,
        has_patients=content.has_patients,
    )


def take_rows(index: ImageIndex, rows: np.ndarray) -> ImageIndex:
    """The index of these rows alone. rows: int [M]."""
    return replace(
        index,
        table=index.table.iloc[rows].reset_index(drop=True),
        targets=index.targets[rows],
        names=tuple(index.names[row] for row in rows),
    )


def _check_rows(path: Path, table: pd.DataFrame) -> None:
    """InputError for a row without file or patient, or with a path outside the folder of images."""
    file, patient = table["file"].astype(object), table["patient"]
    _refuse(path, table, file == "", "names no file", "give it its image's name, or take the line out")
    _refuse(path, table, patient == "", "has no patient id", "training and test are kept apart by patient: fill it in")
    absolute = file.str.match(r"[/\\]|[A-Za-z]:[/\\]")
    _refuse(path, table, absolute, "has an absolute path", "image paths start at the folder of [data] images")
    upward = file.str.contains(r"(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f]", regex=True)
    _refuse(path, table, upward, "has a path with `..` or a control character in it", "images lie below [data] images")
    too_long = file.map(_is_too_long).astype(bool)
    _refuse(path, table, too_long, "has a path too long for a file system", "a name has at most 255 bytes")


def _is_too_long(file: str) -> bool:
    return len(file) > 63 and (len(file.encode()) > 4000 or max(len(name.encode()) for name in file.split("/")) > 255)


def _normalize(file: str) -> str:
    """The path with slashes: tables that are written on Windows have backslashes."""
    file = file.replace("\\", "/")
    return posixpath.normpath(file) if "/" in file else file


def _check_repeated_files(path: Path, table: pd.DataFrame) -> None:
    file = table["file"].astype(object)
    repeated = file.duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        first = table["line"].iat[int((file == file.iat[row]).to_numpy().argmax())]
        fault = f"names the same file as line {first:,}"
        _refuse(
            path,
            table,
            repeated,
            fault,
            "an index has one line per image: take the repeats out, or say with [data] columns.rows_per_image how "
            "the lines of an image count",
        )


def _refuse(path: Path, table: pd.DataFrame, faulty: "pd.Series[bool]", fault: str, rule: str) -> None:
    """InputError with the first faulty line and the count, if there is one."""
    rows = np.flatnonzero(faulty.to_numpy())
    if len(rows):
        more = f" ({len(rows):,} such lines in all)" if len(rows) > 1 else ""
        raise InputError(f"{path}: index line {table['line'].iat[rows[0]]:,} {fault}{more}; {rule}")


def _digest(*columns: Iterable[str]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for column in columns:
        digest.update("\0".join(column).encode())
        digest.update(b"\n")
    return digest
