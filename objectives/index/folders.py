"""Where an image set's files lie: as the publisher packs them, or as people unpack them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from acuity.objectives.errors import InputError

_DEPTH = 2
"""NIH's images come in images_001/images and so on, PadChest's in 0, 1, ..., 54."""


def place_files(images: Path, names: Sequence[str], *, folder: str = "") -> tuple[Path, Sequence[str]]:
    """The folder that the files start at, and each one's path from there; names that are not found stay as they are.

    folder: the release's own, which may be images itself or lie in it. Bare names of which none is in images are looked
    for in its folders, each of which is listed once. InputError if one is in two of them.
    """
    root = images / folder if folder and (images / folder).is_dir() else images
    if not root.is_dir() or any("/" in name for name in names) or (root / names[0]).exists():
        return root, names
    wanted = set(names)
    found: dict[str, str] = {}
    for below, name in _listed(root, _DEPTH):
        if name in wanted:
            if not below:
                return root, names
            if name in found:
                raise InputError(
                    f"{root}: has an image of the same name in {found[name]} and in {below}; [data] images must name "
                    "the folder with the ones to use"
                )
            found[name] = below
    return root, [f"{found[name]}/{name}" if name in found else name for name in names]


def _listed(folder: Path, depth: int, below: str = "") -> Iterator[tuple[str, str]]:
    """(folder from here, file name) of every file, this folder's own first, down to depth."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted((entry.is_dir(), entry.name) for entry in entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); the images must be readable here") from None
    for is_folder, name in listed:
        if not is_folder:
            yield below, name
        elif depth:
            yield from _listed(folder / name, depth - 1, f"{below}/{name}" if below else name)
