"""Decode each image once and keep every resolution as one array that all processes of a host map into memory.

An array is moved into place when it is whole, so what lies there is read without a lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from objectives.cache_arrays import CacheArray, Faults, decode_into_drafts, open_whole, publish
from objectives.errors import InputError
from objectives.index import ImageIndex, check_images_present
from objectives.pixels import FIT, UnreadableImageError, longer_side

logger = logging.getLogger(__name__)

_LAYOUT = 1
"""Counted up when the same image would give other pixels or another file: older arrays are then not used."""

_SAMPLED_IMAGES = 64
_MOST_NAMED = 10
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WAY_OUT = 'name another folder with [data] cache = "PATH"'


class UnreadableImagesError(InputError):
    """Images that cannot be decoded. files, as in the index, may be shown on an interactive terminal, nowhere else."""

    def __init__(self, message: str, *, files: tuple[str, ...]) -> None:
        super().__init__(message)
        self.files = files


def build_cache(
    index: ImageIndex,
    *,
    folder: Path,
    resolutions: Sequence[int],
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make the arrays that are missing or not whole, decoding each image once for all of them.

    A process that builds the same ones is waited for. processes: by default one a core. progress is called with (images
    done, images in all). InputError, and nothing is kept, if images are missing, unreadable (all are named together) or
    smaller than a resolution, or if the disk has no room.
    """
    if not _not_whole(_arrays(index, folder, resolutions)):
        return
    check_images_present(index)
    _check_sizes(index, max(resolutions))
    arrays = _arrays(index, folder, resolutions)
    with _sole_builder(folder, arrays[0].key):
        missing = _not_whole(arrays)
        if not missing:  # another process built them meanwhile
            return
        _check_room(folder, missing)
        try:
            _build(index, missing, processes=processes or len(os.sched_getaffinity(0)), progress=progress)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise _no_room(folder, missing) from None
        finally:
            for array in missing:
                array.draft.unlink(missing_ok=True)


def open_cache(index: ImageIndex, *, folder: Path, resolution: int) -> np.ndarray:
    """One resolution, mapped into memory, read-only: uint8 [N, R, R] in the index's order."""
    (array,) = _arrays(index, folder, [resolution])
    pixels = _open(array)
    if pixels is None:
        raise InputError(
            f"{folder} has no whole array of these {array.count:,} images at {resolution} px: launch the experiment "
            "again, which builds it"
        )
    return pixels


def cache_bytes(index: ImageIndex, resolutions: Sequence[int]) -> int:
    """Disk that the arrays of these resolutions take."""
    return sum(CacheArray(Path(), "", len(index.table), resolution).size for resolution in set(resolutions))


def _arrays(index: ImageIndex, folder: Path, resolutions: Sequence[int]) -> list[CacheArray]:
    """Where the arrays lie.

    A set's smaller copies have the same file names, hence the same index: some files' sizes in bytes tell them apart.
    """
    try:
        sizes = [index.image_path(row).stat().st_size for row in _sample(index)]
    except OSError:
        check_images_present(index)
        raise InputError(f"{index.images}: its files cannot be read; the images must be readable here") from None
    key = hashlib.sha256(json.dumps([_LAYOUT, index.sha256, FIT, sizes]).encode()).hexdigest()[:16]
    return [CacheArray(folder, key, len(index.table), resolution) for resolution in sorted(set(resolutions))]


def _sample(index: ImageIndex) -> list[int]:
    """Some rows, evenly over the index."""
    return sorted({int(row) for row in np.linspace(0, len(index.table) - 1, _SAMPLED_IMAGES)})


def _not_whole(arrays: Sequence[CacheArray]) -> list[CacheArray]:
    return [array for array in arrays if _open(array) is None]


def _open(array: CacheArray) -> np.ndarray | None:
    try:
        return open_whole(array)
    except OSError as error:
        raise InputError(f"{array.path}: cannot be read ({error.strerror}); {_WAY_OUT}") from None


def _check_sizes(index: ImageIndex, resolution: int) -> None:
    """Refuse a resolution above the images' own before anything is decoded: seen from some, then counted over all."""
    for rows in (_sample(index), range(len(index.table))):
        small = {}
        for row in rows:
            with contextlib.suppress(UnreadableImageError):  # named with all others of its kind when it is decoded
                side = longer_side(index.image_path(row))
                if side < resolution:
                    small[row] = side
        if not small:
            return
    raise _too_small(index, small, resolution)


@contextlib.contextmanager
def _sole_builder(folder: Path, key: str) -> Iterator[None]:
    """Hold this image set's lock, which a killed process gives back, and clear away what a killed one left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{folder}: the image cache cannot be written ({error.strerror}); {_WAY_OUT}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process builds the image cache: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for draft in folder.glob(f"{key}-*.partial"):
            draft.unlink()
        yield
    finally:
        os.close(lock)


def _build(
    index: ImageIndex, arrays: list[CacheArray], *, processes: int, progress: Callable[[int, int], None] | None
) -> None:
    for array in arrays:
        if array.path.exists():
            logger.warning("%s is not whole: building it again", array.path)
    count, done, faults = len(index.table), 0, Faults()
    files = [index.image_path(row) for row in range(count)]
    for images, new in decode_into_drafts(arrays, files, processes=processes):
        done += images
        faults.unreadable.update(new.unreadable)
        faults.small.update(new.small)
        if progress:
            progress(done, count)
    if faults.unreadable:
        raise _unreadable(index, faults.unreadable)
    if faults.small:
        raise _too_small(index, faults.small, max(array.resolution for array in arrays))
    for array in arrays:
        publish(array)


def _check_room(folder: Path, arrays: Sequence[CacheArray]) -> None:
    if shutil.disk_usage(folder).free < sum(array.size for array in arrays):
        raise _no_room(folder, arrays)


def _no_room(folder: Path, arrays: Sequence[CacheArray]) -> InputError:
    sides = ", ".join(str(array.resolution) for array in arrays)
    needed, free = sum(array.size for array in arrays), shutil.disk_usage(folder).free
    return InputError(
        f"{folder}: no room for the image cache: {arrays[0].count:,} images at {sides} px take {_gib(needed)}, and "
        f"{_gib(free)} are free; free some, or {_WAY_OUT}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _too_small(index: ImageIndex, sides: dict[int, int], resolution: int) -> InputError:
    return InputError(
        f"{len(sides):,} of {len(index.table):,} images are smaller than {resolution} px (the first: "
        f"{index.place(min(sides))}), and enlarging them adds nothing: the largest resolution that all images allow is "
        f"{min(sides.values())}"
    )


def _unreadable(index: ImageIndex, reasons: dict[int, str]) -> UnreadableImagesError:
    rows = sorted(reasons)
    named = ", ".join(f"{index.place(row)} ({reasons[row]})" for row in rows[:_MOST_NAMED])
    more = f", and {len(rows) - _MOST_NAMED:,} more" if len(rows) > _MOST_NAMED else ""
    return UnreadableImagesError(
        f"{len(rows):,} of {len(index.table):,} images cannot be read: {named}{more}. Put whole files in their place, "
        f"or take these lines out of {index.path}",
        files=tuple(str(index.table["file"].iat[row]) for row in rows),
    )
