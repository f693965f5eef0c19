"""Read a published split: NIH's two lists of files, or the split column of an index."""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.tables.cells import factorize

TRAIN_VAL = "train_val"
"""Training or validation: divided by patient when the split is made."""
_ENDINGS = re.compile(r"(\.(png|jpe?g|dcm|dicom|gz))+$", re.IGNORECASE)
_WORDS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "train_val": TRAIN_VAL,
}


def published_parts(
    index: ImageIndex, *, train_val_list: Path | None = None, test_list: Path | None = None
) -> dict[str, str]:
    """Patient -> "training", "validation", "test" or TRAIN_VAL, from the lists or from the index's split column.

    Empty without lists and column. One list is enough: images that it does not name are in the other part. If the
    column has no validation, its training images become TRAIN_VAL. InputError if an image is in no part or in both
    lists, if a list's name fits several images, or if a patient is in two parts.
    """
    column = index.table["split"].to_numpy(object)
    lists = train_val_list is not None or test_list is not None
    if not lists and not column.any():
        return {}
    if lists and column.any():
        raise InputError(f"{index.path}: has a split column, and [data] names lists as well; keep one of the two")
    parts = _parts_from_lists(index, train_val_list, test_list) if lists else _parts_from_column(index, column)
    if "test" not in parts:
        raise InputError(
            f"{test_list or train_val_list or index.path}: names no test image of the index; "
            "name the lists of this image set, or leave the published split out"
        )
    return _by_patient(index, parts)


def _parts_from_lists(index: ImageIndex, train_val_list: Path | None, test_list: Path | None) -> np.ndarray:
    in_train_val, in_test = (
        None if path is None else _listed(index, path, _read_list(path)) for path in (train_val_list, test_list)
    )
    if in_test is None:
        assert in_train_val is not None
        in_test = ~in_train_val
    elif in_train_val is None:
        in_train_val = ~in_test
    for faulty, fault in ((in_train_val & in_test, "is in both"), (~in_train_val & ~in_test, "is in neither")):
        if faulty.any():
            raise InputError(
                f"{index.path}: {index.row_name(int(faulty.argmax()))} {fault} of {train_val_list} and {test_list} "
                f"({faulty.sum():,} such lines in all): each image must be in one of them"
            )
    return np.where(in_test, "test", TRAIN_VAL).astype(object)


def _listed(index: ImageIndex, path: Path, entries: set[str]) -> np.ndarray:
    """bool [N]: images that a list names, by the whole path, else without image extensions, else without folders.

    A later rule is for images and entries that no earlier rule has matched. Folders are ignored only if no entry
    matches an image by a path with folders: else the list means these folders. InputError if an entry fits several
    images, or an image several entries.
    """
    names = [_path(name) for name in index.names]
    left = _without_release_folder(entries, names)
    listed = np.zeros(len(names), dtype=bool)
    for key in (str, _without_extensions, _base_name):
        if key is _base_name and any("/" in name for name, fits in zip(names, listed, strict=True) if fits):
            break
        keys = [key(name) for name in names]
        rows, named = Counter(keys), Counter(map(key, left))
        fits = np.array([own in named for own in keys]) & ~listed
        several = fits & np.array([rows[own] > 1 or named[own] > 1 for own in keys])
        if several.any():
            raise InputError(
                f"{path}: a name in it fits more than one image, or several names fit one image, as of "
                f"{index.row_name(int(several.argmax()))} of {index.path} ({several.sum():,} such lines in all): write "
                "each path as the index does"
            )
        listed |= fits
        matched = {own for own, is_listed in zip(keys, listed, strict=True) if is_listed}
        left = {entry for entry in left if key(entry) not in matched}
    return listed


def _without_release_folder(entries: set[str], names: Sequence[str]) -> set[str]:
    """The entries without the folder with which all begin, if paths of the index match then and none has the folder.

    CheXpert's release begins every path with its own folder, which `ImageIndex.names` leaves out.
    """
    folders = {entry.partition("/")[0] for entry in entries}
    folder = f"{folders.pop()}/" if len(folders) == 1 else ""
    if not folder or any(name.startswith(folder) for name in names):
        return entries
    shorter = {entry.removeprefix(folder) for entry in entries}
    return shorter if any("/" in name and name in shorter for name in names) else entries


def _read_list(path: Path) -> set[str]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe could block for ever
            raise InputError(f"{path}: is not a regular file; a list has one image name per line")
        names = {_path(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({why}); a list has one image name per line") from None
    if not names:
        raise InputError(f"{path}: is empty; a list has one image name per line")
    return names


def _path(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _without_extensions(name: str) -> str:
    """The path without image extensions: images may be converted. A DICOM UID keeps its dots."""
    return _ENDINGS.sub("", name)


def _base_name(name: str) -> str:
    """The name without folder and image extensions: images may be moved."""
    return _without_extensions(name).rpartition("/")[2]


def _parts_from_column(index: ImageIndex, column: np.ndarray) -> np.ndarray:
    codes, distinct = factorize(column)
    named_parts = np.array([_WORDS.get(cell.lower(), "") for cell in distinct], dtype=object)
    faulty = (named_parts == "")[codes]
    if faulty.any():
        raise InputError(
            f"{index.path}: {index.row_name(int(faulty.argmax()))} has another word than training, validation, test or "
            f"train_val in its split column ({faulty.sum():,} such lines in all): fill it in, or leave the column away"
        )
    if "validation" not in named_parts:
        named_parts[named_parts == "training"] = TRAIN_VAL
    parts: np.ndarray = named_parts[codes]
    return parts


def _by_patient(index: ImageIndex, parts: Sequence[str] | np.ndarray) -> dict[str, str]:
    """Patient -> part. InputError with the lines if a patient is in two parts."""
    first: dict[str, int] = {}
    patients = index.table["patient"].to_list()
    for row, patient in enumerate(patients):
        first_row = first.setdefault(patient, row)
        if parts[first_row] != parts[row]:
            raise InputError(
                f"{index.path}: {index.row_name(first_row)} is in {parts[first_row]} and {index.row_name(row)}, of the "
                f"same patient, in {parts[row]}: a patient's images must all be in one part. Correct "
                "the split, or leave it out"
            )
    return {patient: str(parts[row]) for patient, row in first.items()}
