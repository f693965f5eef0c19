"""Decode each image once and keep every resolution as one array that all processes of a host map into memory.

An array is moved into place when it is whole, so what lies there is read without a lock. Beside the arrays lies a
record of the images that are bad and of how far a build has come.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.arrays import CacheArray
from acuity.objectives.images.build import WAY_OUT, CacheBuild, OnBadImage, finish, open_array, settled
from acuity.objectives.images.decoding import Fit, image_side
from acuity.objectives.images.dicom import is_dicom
from acuity.objectives.images.faults import BadImage, bad_images, too_small
from acuity.objectives.index.image_index import ImageIndex, check_images_present

logger = logging.getLogger(__name__)
_LAYOUT = 2
"""Counted up when the same image would give other pixels or another file: older arrays are then not used."""
_DICOM_LAYOUT = 2
"""The same, of DICOM files alone."""
_SAMPLED_IMAGES = 64
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class ImageCache:
    """The arrays of an image set, every one whole when this was made."""

    folder: Path
    key: str
    count: int
    bad: tuple[BadImage, ...]
    """Ascending; these rows of every array are black and must not be used."""
    written_bytes: int
    """Of the arrays that this call finished: 0 if all were there."""
    seconds: float

    def open(self, resolution: int) -> np.ndarray:
        """One resolution, mapped into memory, read-only: uint8 [count, R, R] in the index's order."""
        pixels = open_array(CacheArray(self.folder, self.key, self.count, resolution))
        if pixels is None:
            raise InputError(
                f"{self.folder} has no whole array of these {self.count:,} images at {resolution} px: prepare or "
                "launch the experiment again, which builds it"
            )
        return pixels


def build_cache(
    index: ImageIndex,
    *,
    folder: Path,
    resolutions: Sequence[int],
    fit: Fit = "pad",
    on_bad_image: OnBadImage = "refuse",
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """Make the arrays that are missing or not whole, decoding each image once for all of them.

    A build that was killed is taken up where it stood, and a process that builds the same arrays is waited for.
    on_bad_image: "refuse" (all bad images are named together, and tried again by the next build) or "drop" (a missing
    file is a bad image too). processes: by default one a core. progress is called with (images done, images in all).
    InputError if images are missing, bad, or smaller than a resolution, or if the disk has no room.
    """
    began = time.perf_counter()
    key = _key(index, fit)
    arrays = [CacheArray(folder, key, len(index.table), resolution) for resolution in sorted(set(resolutions))]
    build = CacheBuild(index, arrays, fit, on_bad_image)
    record, written = settled(build), 0
    if record is None:
        if on_bad_image == "refuse":
            check_images_present(index)
        _check_sizes(build)
        with _sole_builder(folder, key):
            record = settled(build)
            if record is None:  # no other process built them meanwhile
                record, written = finish(build, processes or len(os.sched_getaffinity(0)), progress)
    bad = bad_images(index, record.bad)
    return ImageCache(folder, key, len(index.table), bad, written, time.perf_counter() - began)


def cache_bytes(index: ImageIndex, resolutions: Sequence[int]) -> int:
    """Disk that the arrays of these resolutions take."""
    return sum(CacheArray(Path(), "", len(index.table), resolution).size for resolution in set(resolutions))


def _key(index: ImageIndex, fit: Fit) -> str:
    """What tells image sets apart: the file names and, since a smaller copy has the same ones, the look of some files.

    Labels have no part in it: another reading of them needs no other pixels.
    """
    if not index.images.is_dir():
        raise InputError(f"{index.images}: no such folder; [data] images names where the index's files lie")
    looks: list[list[object]] = []
    for row in _sample(index):
        try:
            with index.image_path(row).open("rb") as file:
                head = file.read(_HEAD_BYTES)
                looks.append([os.fstat(file.fileno()).st_size, hashlib.sha256(head).hexdigest()])
                if is_dicom(head):
                    looks[-1].append(_DICOM_LAYOUT)
        except OSError:  # missing or damaged
            looks.append([])
    return hashlib.sha256(json.dumps([_LAYOUT, index.files_sha256, fit, looks]).encode()).hexdigest()[:16]


def _sample(index: ImageIndex) -> list[int]:
    """Some rows, evenly over the index."""
    return sorted({int(row) for row in np.linspace(0, len(index.table) - 1, _SAMPLED_IMAGES)})


def _check_sizes(build: CacheBuild) -> None:
    """Refuse a resolution above the images' own before anything is decoded: seen from some, then counted over all."""
    resolution = max(array.resolution for array in build.arrays)
    for rows in (_sample(build.index), range(len(build.index.table))):
        small = {}
        for row in rows:
            with contextlib.suppress(UnreadableImageError):  # named with all others of its kind when it is decoded
                side = image_side(build.index.image_path(row), build.fit)
                if side < resolution:
                    small[row] = side
        if not small:
            return
    raise too_small(build.index, small, resolution)


@contextlib.contextmanager
def _sole_builder(folder: Path, key: str) -> Iterator[None]:
    """Hold this image set's lock, which a killed process gives back."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{folder}: the image cache cannot be written ({error.strerror}); {WAY_OUT}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process builds the image cache: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
