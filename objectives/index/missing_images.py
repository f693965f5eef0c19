"""Find images of an index that are not on the disk."""

import os
import posixpath
import unicodedata
from pathlib import Path

from acuity.objectives.errors import InputError
from acuity.objectives.index.folders import unlistable
from acuity.objectives.index.image_index import ImageIndex


def check_images_present(index: ImageIndex) -> None:
    """InputError with the count and the first line if any image is missing."""
    missing = find_missing_images(index)
    if not missing:
        return
    files = [str(index.table["file"].iat[row]) for row in missing]
    listings: dict[Path, dict[str, list[str]]] = {}
    similar = [
        row for row, file in zip(missing, files, strict=True) if _is_spelled_otherwise(index.images, file, listings)
    ]
    hint = (
        f" (for {len(similar):,} of them, the first {index.row_name(similar[0])}, a file is there that differs by case "
        "or Unicode form only: rename the files, or write the index as they are)"
        if similar
        else ""
    )
    raise InputError(
        f"{index.row_name(missing[0])}: its file is not in {index.images} ({len(missing):,} of "
        f"{len(index.table):,} files missing in all){hint}: complete the folder, take these lines out of {index.path}, "
        'or leave such images out with [data] on_bad_image = "drop"'
    )


def find_missing_images(index: ImageIndex) -> list[int]:
    """Rows whose file does not exist, ascending. InputError if there is no folder of images.

    Lists each folder once: one stat call per image is slow on a network disk.
    """
    check_folder_present(index)
    names_by_folder: dict[str, set[str]] = {}
    missing = []
    for row, file in enumerate(index.table["file"]):
        folder, name = posixpath.split(file)
        if folder not in names_by_folder:
            names_by_folder[folder] = _names_in(index.images / folder)
        if name not in names_by_folder[folder]:
            missing.append(row)
    return missing


def check_folder_present(index: ImageIndex) -> None:
    """InputError if there is no folder of images."""
    if not index.images.is_dir():
        raise InputError(f"{index.images}: no such folder; [data] images names where the index's files lie")


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise unlistable(folder, error) from None


def _is_spelled_otherwise(root: Path, file: str, listings: dict[Path, dict[str, list[str]]]) -> bool:
    """True if there is a path that differs from this one by case or Unicode form only.

    listings: the names in each folder that was listed before, by their folded form.
    """
    found = [root]
    for name in file.split("/"):
        for folder in found:
            if folder not in listings:
                listings[folder] = {}
                for listed in _names_in(folder):
                    listings[folder].setdefault(_folded(listed), []).append(listed)
        found = [folder / listed for folder in found for listed in listings[folder].get(_folded(name), ())]
    return bool(found)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
