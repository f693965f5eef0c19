"""Locate an image set's files, in the publisher's folders or in one flat folder."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from acuity.objectives.errors import InputError

_DEPTH = 2
"""Folder levels. NIH's images lie in images_001/images and so on, PadChest's in 0, 1, ..., 54."""


def locate_files(images: Path, names: Sequence[str], *, folder: str = "") -> tuple[Path, Sequence[str]]:
    """The root folder of the files, and the path of each file from there. A name that is not found is unchanged.

    folder: the release's folder. It is images itself or lies in images. Names without a folder are searched in the
    folders of images if the first name is not in images itself; each folder is listed once. InputError if one name is
    in two folders.
    """
    root = images / folder if folder and (images / folder).is_dir() else images
    if not root.is_dir() or any("/" in name for name in names) or (root / names[0]).exists():
        return root, names
    wanted = set(names)
    found: dict[str, str] = {}
    for subfolder, name in _walk(root, _DEPTH):
        if name in wanted:
            if not subfolder:
                return root, names
            if name in found:
                raise InputError(
                    f"{root}: has an image of the same name in {found[name]} and in {subfolder}; [data] images must "
                    "name the folder with the ones to use"
                )
            found[name] = subfolder
    return root, [f"{found[name]}/{name}" if name in found else name for name in names]


def unlistable(folder: Path, error: OSError) -> InputError:
    """The error for a folder that cannot be listed."""
    return InputError(f"{folder}: cannot be listed ({error.strerror}); the images must be readable here")


def _walk(folder: Path, depth: int, subfolder: str = "") -> Iterator[tuple[str, str]]:
    """(subfolder, name) of every file down to depth. The files of a folder come before those of its subfolders."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted((entry.is_dir(), entry.name) for entry in entries)
    except OSError as error:
        raise unlistable(folder, error) from None
    for is_folder, name in listed:
        if not is_folder:
            yield subfolder, name
        elif depth:
            yield from _walk(folder / name, depth - 1, f"{subfolder}/{name}" if subfolder else name)
