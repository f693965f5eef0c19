"""Parts that a publisher has decided: NIH's two lists of files, or a table's own split column."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.index.cells import factorize
from acuity.objectives.index.image_index import ImageIndex

TRAIN_VAL = "train_val"
"""Training or validation, cut by patient when the split is made."""
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
    """Each patient's training, validation, test or train_val, from the lists or the index's own split; {} without any.

    Of two lists, one is enough: what it does not name is in the other. A column that names no validation leaves that to
    be cut from training. InputError where an image is in no part or in two, or a patient's images are.
    """
    column = index.table["split"].to_numpy(object)
    lists = train_val_list is not None or test_list is not None
    if not lists and not column.any():
        return {}
    if lists and column.any():
        raise InputError(f"{index.path}: has a split column, and [data] names lists as well; keep one of the two")
    words = _of_lists(index, train_val_list, test_list) if lists else _of_column(index, column)
    if "test" not in words:
        raise InputError(
            f"{test_list or train_val_list or index.path}: names no test image of the index; each part needs some"
        )
    return _by_patient(index, words)


def _of_lists(index: ImageIndex, train_val_list: Path | None, test_list: Path | None) -> np.ndarray:
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
    for faulty, what in ((in_train_val & in_test, "is in both"), (~in_train_val & ~in_test, "is in neither")):
        if faulty.any():
            raise InputError(
                f"{index.path}: {index.place(int(faulty.argmax()))} {what} of {train_val_list} and {test_list} "
                f"({faulty.sum():,} such lines in all): each image must be in one"
            )
    return np.where(in_test, "test", TRAIN_VAL).astype(object)


def _read_list(path: Path | None) -> set[str] | None:
    if path is None:
        return None
    try:
        names = {_stem(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({why}); a list has one image name a line") from None
    if not names:
        raise InputError(f"{path}: is empty; a list has one image name a line")
    return names


def _stem(name: str) -> str:
    """Without folder and endings, since people convert images and move them about; a DICOM's UID has its own dots."""
    return _ENDINGS.sub("", name.rpartition("/")[2])


def _of_column(index: ImageIndex, column: np.ndarray) -> np.ndarray:
    codes, distinct = factorize(column)
    words = np.array([_WORDS.get(cell.lower(), "") for cell in distinct], dtype=object)
    faulty = (words == "")[codes]
    if faulty.any():
        raise InputError(
            f"{index.path}: {index.place(int(faulty.argmax()))} has another word than training, validation, test or "
            f"train_val in its split column ({faulty.sum():,} such lines in all): fill it in, or leave the column away"
        )
    if "validation" not in words:
        words[words == "training"] = TRAIN_VAL
    parts: np.ndarray = words[codes]
    return parts


def _by_patient(index: ImageIndex, words: Sequence[str] | np.ndarray) -> dict[str, str]:
    """InputError with the lines if a patient's images are in two parts."""
    first: dict[str, int] = {}
    patients = index.table["patient"].to_list()
    for row, patient in enumerate(patients):
        before = first.setdefault(patient, row)
        if words[before] != words[row]:
            raise InputError(
                f"{index.path}: {index.place(before)} is in {words[before]} and {index.place(row)}, of the same "
                f"patient, in {words[row]}: a patient's images must all be in one part"
            )
    return {patient: str(words[row]) for patient, row in first.items()}
