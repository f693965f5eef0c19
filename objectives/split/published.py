"""Read a published split: NIH's two lists of files, or the split column of an index."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.cells import factorize
from acuity.objectives.index.image_index import ImageIndex

TRAIN_VAL = "train_val"
"""Training or validation: divided by patient when the split is made."""
_ENDINGS = re.compile(r"(\.(png|jpe?g|dcm|dicom|gz))+$", re.IGNORECASE)
_WORDS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
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
    lists, or if a patient is in two parts.
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
            f"{test_list or train_val_list or index.path}: names no test image of the index; each part needs some"
        )
    return _by_patient(index, parts)


def _parts_from_lists(index: ImageIndex, train_val_list: Path | None, test_list: Path | None) -> np.ndarray:
    stems = [_stem(name) for name in index.names]
    in_train_val, in_test = (
        np.array([stem in listed for stem in stems]) if listed else None
        for listed in (_read_list(path) for path in (train_val_list, test_list))
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


def _read_list(path: Path | None) -> set[str] | None:
    if path is None:
        return None
    try:
        names = {_stem(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({why}); a list has one image name per line") from None
    if not names:
        raise InputError(f"{path}: is empty; a list has one image name per line")
    return names


def _stem(name: str) -> str:
    """The name without folder and image extensions: images may be converted or moved. A DICOM UID keeps its dots."""
    return _ENDINGS.sub("", name.rpartition("/")[2])


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
                f"same patient, in {parts[row]}: a patient's images must all be in one part"
            )
    return {patient: str(parts[row]) for patient, row in first.items()}
