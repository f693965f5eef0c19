"""The image cache: each image is decoded once, and all processes of a host map the arrays into memory.

There is one array per resolution. An array gets its name when it is complete, so readers need no lock. A record beside
the arrays lists the bad images and the progress of an unfinished build.
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
from acuity.objectives.images.build import (
    OTHER_FOLDER,
    CacheBuild,
    OnBadImage,
    finish_build,
    finished_record,
    open_array,
)
from acuity.objectives.images.decoding import max_resolution_of_file
from acuity.objectives.images.dicom import is_dicom
from acuity.objectives.images.faults import BadImage, bad_images, too_small
from acuity.objectives.images.resizing import Fit
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.index.missing_images import check_folder_present, check_images_present

logger = logging.getLogger(__name__)
_VERSION = 3
"""Increment it when the same image gives other pixels or another file. Older arrays are then not used."""
_DICOM_VERSION = 3
"""The same for DICOM files alone."""
_SAMPLED_IMAGES = 64
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class ImageCache:
    """The complete arrays of an image set."""

    folder: Path
    key: str
    count: int
    bad: tuple[BadImage, ...]
    """Images that cannot be read, in the order of the index. Their rows are black and must not be used."""
    written_bytes: int
    """Bytes of the arrays that `build_cache` built: 0 if all existed."""
    seconds: float
    """Duration of `build_cache`."""

    def open(self, resolution: int) -> np.ndarray:
        """The array of a resolution, mapped into memory, read-only: uint8 [count, R, R] in the index's order.

        InputError if there is none.
        """
        pixels = open_array(CacheArray(self.folder, self.key, self.count, resolution))
        if pixels is None:
            raise InputError(
                f"{self.folder} has no complete array of these {self.count:,} images at {resolution} px: prepare or "
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
    """Build the arrays that are missing or incomplete. Each image is decoded once for all of them.

    An interrupted build resumes. If another process builds the same arrays, this one waits. on_bad_image: "refuse"
    names all bad images in one error, and the next build decodes them again; "drop" accepts bad and missing images.
    processes: one per core by default. progress: called with (images done, images in all). InputError if images are
    missing, bad or smaller than a resolution, or if the disk is full.
    """
    began = time.perf_counter()
    key = _key(index, fit)
    arrays = [CacheArray(folder, key, len(index.table), resolution) for resolution in sorted(set(resolutions))]
    build = CacheBuild(index, arrays, fit, on_bad_image)
    record, written = finished_record(build), 0
    if record is None:
        if on_bad_image == "refuse":
            check_images_present(index)
        _check_sizes(build)
        with _build_lock(folder, key):
            record = finished_record(build)
            if record is None:  # no other process has built them
                record, written = finish_build(
                    build, processes=processes or len(os.sched_getaffinity(0)), progress=progress
                )
    bad = bad_images(index, record.bad)
    return ImageCache(folder, key, len(index.table), bad, written, time.perf_counter() - began)


def cache_bytes(index: ImageIndex, resolutions: Sequence[int]) -> int:
    """Bytes of the arrays of these resolutions."""
    return sum(CacheArray(Path(), "", len(index.table), resolution).size for resolution in set(resolutions))


def _key(index: ImageIndex, fit: Fit) -> str:
    """The identity of an image set: its file names, and the size and first bytes of 64 files.

    Smaller copies of an image set have the same file names. Labels do not matter: they change no pixels.
    """
    check_folder_present(index)
    fingerprints: list[list[object]] = []
    for row in _sample(index):
        try:
            with index.image_path(row).open("rb") as file:
                head = file.read(_HEAD_BYTES)
                fingerprints.append([os.fstat(file.fileno()).st_size, hashlib.sha256(head).hexdigest()])
                if is_dicom(head):
                    fingerprints[-1].append(_DICOM_VERSION)
        except OSError:  # missing or damaged
            fingerprints.append([])
    return hashlib.sha256(json.dumps([_VERSION, index.files_sha256, fit, fingerprints]).encode()).hexdigest()[:16]


def _sample(index: ImageIndex) -> list[int]:
    """Up to 64 rows at equal distances in the index."""
    return sorted({int(row) for row in np.linspace(0, len(index.table) - 1, _SAMPLED_IMAGES)})


def _check_sizes(build: CacheBuild) -> None:
    """InputError if an image is smaller than a resolution, by the files' headers.

    A sample is checked first. If it has a small image, all images are checked, to count them.
    """
    resolution = max(array.resolution for array in build.arrays)
    for rows in (_sample(build.index), range(len(build.index.table))):
        small = {}
        for row in rows:
            with contextlib.suppress(UnreadableImageError):  # the build reports all unreadable images
                limit = max_resolution_of_file(build.index.image_path(row), build.fit)
                if limit < resolution:
                    small[row] = limit
        if not small:
            return
    raise too_small(build.index, small, resolution)


@contextlib.contextmanager
def _build_lock(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of the image set. The kernel frees it when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{folder}: the image cache cannot be written ({error.strerror}); {OTHER_FOLDER}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process builds the image cache: waiting until it has finished")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
