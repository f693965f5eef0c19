"""Locate an image set's files, in the publisher's folders or in one flat folder."""

import os
import posixpath
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from acuity.objectives.errors import InputError

_DEPTH = 3
"""Folder levels. NIH's images lie in images_001/images and so on, PadChest's in 0, 1, ..., 54, SIIM's in
dicom-images-train/STUDY/SERIES."""
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def locate_files(images: Path, names: Sequence[str], *, folder: str = "") -> tuple[Path, Sequence[str]]:
    """The root folder of the files, and the path of each file from there. A name that is not found is unchanged.

    folder: the release's folder. It is images itself or lies in images. If the first name is not in images itself,
    folders below are searched: for names without a folder, for the patients' folders of names such as
    train/patient00001/..., and for files with another image extension (converted images). Each folder is listed once.
    InputError if one name is in two folders.
    """
    root = images / folder if folder and (images / folder).is_dir() else images
    if not root.is_dir() or _exists(root, names[0]):
        return root, names
    deep = any("/" in name for name in names)
    located = _in_patient_folders(root, names) if deep else _in_folders(root, names)
    if _exists(root, located[0]):
        return root, located
    extension = _other_extension(root, located[0]) if deep else _listed_extension(root, names[0])
    if not extension:
        return root, located
    converted = [_without_extension(name) + extension for name in (located if deep else names)]
    return root, converted if deep else _in_folders(root, converted)


def _exists(root: Path, name: str) -> bool:
    try:
        return (root / name).exists()
    except (OSError, ValueError):
        return False


def _in_folders(root: Path, names: Sequence[str]) -> Sequence[str]:
    """The path of each bare name, in the folders of root. A name in root itself stays."""
    wanted = set(names)
    found: dict[str, str] = {}
    for subfolder, name, is_folder in _walk(root, _DEPTH):
        if name in wanted and not is_folder:
            if not subfolder:
                return names
            _note(root, found, name, subfolder, what="an image")
    return [f"{found[name]}/{name}" if name in found else name for name in names]


def _in_patient_folders(root: Path, names: Sequence[str]) -> Sequence[str]:
    """The path of each name, by the place of its second folder: CheXpert's batches hold the patients' folders."""
    wanted = {_second_folder(name) for name in names}
    found: dict[str, str] = {}
    for subfolder, name, is_folder in _walk(root, _DEPTH, stop=wanted):
        if is_folder and name in wanted:
            _note(root, found, name, subfolder, what="a patient's folder")
    if not found:
        return names
    return [
        posixpath.join(found[folder], name.partition("/")[2]) if (folder := _second_folder(name)) in found else name
        for name in names
    ]


def _second_folder(name: str) -> str:
    """patient00001 of train/patient00001/study1/view1_frontal.jpg. Empty if the name has fewer than two folders."""
    parts = name.split("/", 2)
    return parts[1] if len(parts) > 2 else ""


def _note(root: Path, found: dict[str, str], name: str, subfolder: str, *, what: str) -> None:
    if name in found:
        raise InputError(
            f"{root}: has {what} of the same name in {found[name] or '.'} and in {subfolder}; [data] images must name "
            "the folder with the ones to use"
        )
    found[name] = subfolder


def _without_extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and f".{extension.lower()}" in _EXTENSIONS else name


def _other_extension(root: Path, name: str) -> str:
    """The only other image extension with which the file is there. Empty if there is none, or several."""
    found = [extension for extension in _EXTENSIONS if _exists(root, _without_extension(name) + extension)]
    return found[0] if len(found) == 1 else ""


def _listed_extension(root: Path, name: str) -> str:
    """As `_other_extension`, for a bare name in root or its folders."""
    wanted = {_without_extension(name) + extension: extension for extension in _EXTENSIONS}
    found = {wanted[other] for _, other, is_folder in _walk(root, _DEPTH) if not is_folder and other in wanted}
    return found.pop() if len(found) == 1 else ""


def unlistable(folder: Path, error: OSError) -> InputError:
    """The error for a folder that cannot be listed."""
    return InputError(f"{folder}: cannot be listed ({error.strerror}); give this user the right to read it")


def _walk(
    folder: Path, depth: int, subfolder: str = "", *, stop: Collection[str] = ()
) -> Iterator[tuple[str, str, bool]]:
    """(subfolder, name, is a folder) of every entry down to depth. Files come before the folders' content.

    stop: names of folders whose content is not listed.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted((_is_folder(entry), entry.name) for entry in entries)
    except OSError as error:
        raise unlistable(folder, error) from None
    for is_folder, name in listed:
        yield subfolder, name, is_folder
        if is_folder and depth and name not in stop:
            yield from _walk(folder / name, depth - 1, f"{subfolder}/{name}" if subfolder else name, stop=stop)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: one such file must not hide the others
        return False
