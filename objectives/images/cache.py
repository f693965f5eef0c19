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
import zlib
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
    check_sample,
    finish_build,
    finished_record,
    open_array,
    open_record,
)
from acuity.objectives.images.decoding import check_regular, max_resolution_of_file
from acuity.objectives.images.depth import BIT_DEPTHS
from acuity.objectives.images.dicom import is_dicom
from acuity.objectives.images.faults import BadImage, bad_images, changed, too_small
from acuity.objectives.images.record import CacheRecord
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
_NAMED_LINES = 3


@dataclass(frozen=True)
class DepthCount:
    """Number of images of 16 bits that were scaled by a bit depth, and the index lines of the first of them."""

    bits: int
    images: int
    lines: tuple[int, ...]


@dataclass(frozen=True)
class ImageCache:
    """The complete arrays of an image set."""

    folder: Path
    key: str
    count: int
    bad: tuple[BadImage, ...]
    """Images that cannot be read or are smaller than the largest resolution, in the order of the index. Their rows must
    not be used."""
    small: int
    """Number of these that are only smaller than the largest resolution."""
    depths: tuple[DepthCount, ...]
    """Images of 16 bits by the bit depth by which they were scaled, the smallest depth first."""
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
    check_files: bool = False,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """Build the arrays that are missing or incomplete. Each image is decoded once for all of them.

    An interrupted build resumes. If another process builds the same arrays, this one waits. on_bad_image: "refuse"
    names all bad images in one error, and the next build decodes them again; "drop" accepts bad, small and missing
    images. check_files: compare every file with the one that was decoded. processes: one per core by default.
    progress: called with (images done, images in all). InputError if images are missing, bad, changed or smaller than
    a resolution, or if the disk is full.
    """
    began = time.perf_counter()
    key = _key(index, fit)
    arrays = [CacheArray(folder, key, len(index.table), resolution) for resolution in sorted(set(resolutions))]
    build = CacheBuild(index, arrays, fit, on_bad_image)
    if check_files:
        _check_files(build)
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
    if not written:
        check_sample(build, record)
    return ImageCache(
        folder=folder,
        key=key,
        count=len(index.table),
        bad=bad_images(index, record.left_out(build.largest)),
        small=len(record.small_below(build.largest).keys() - record.bad.keys()),
        depths=_count_depths(index, record),
        written_bytes=written,
        seconds=time.perf_counter() - began,
    )


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
            check_regular(index.image_path(row))
            with index.image_path(row).open("rb") as file:
                head = file.read(_HEAD_BYTES)
                fingerprints.append([os.fstat(file.fileno()).st_size, hashlib.sha256(head).hexdigest()])
                if is_dicom(head):
                    fingerprints[-1].append(_DICOM_VERSION)
        except (OSError, UnreadableImageError):  # missing, damaged, or a named pipe
            fingerprints.append([])
    return hashlib.sha256(json.dumps([_VERSION, index.files_sha256, fit, fingerprints]).encode()).hexdigest()[:16]


def _sample(index: ImageIndex) -> list[int]:
    """Up to 64 rows at equal distances in the index."""
    return sorted({int(row) for row in np.linspace(0, len(index.table) - 1, _SAMPLED_IMAGES)})


def _count_depths(index: ImageIndex, record: CacheRecord) -> tuple[DepthCount, ...]:
    lines = index.table["line"].to_numpy()
    rows = {bits: sorted(row for row, depth in record.depths.items() if depth == bits) for bits in BIT_DEPTHS}
    return tuple(
        DepthCount(bits, len(some), tuple(int(lines[row]) for row in some[:_NAMED_LINES]))
        for bits, some in rows.items()
        if some
    )


def _check_files(build: CacheBuild) -> None:
    """InputError if the content of a decoded file has changed: by its size, or by its CRC-32 if only its time differs.

    A file that is gone is no other picture. A file that was bad stays left out until it is decoded again.
    """
    record = open_record(build)
    if record is None:
        return
    other, touched = [], False
    for row in np.flatnonzero(record.files[:, 0] >= 0).tolist():
        path = build.index.image_path(row)
        try:
            status = path.stat()
            if row in record.bad or (status.st_size, status.st_mtime_ns) == tuple(record.files[row, :2]):
                continue
            if status.st_size != record.files[row, 0] or zlib.crc32(path.read_bytes()) != record.files[row, 2]:
                other.append(row)
            else:
                record.files[row, 1], touched = status.st_mtime_ns, True
        except OSError:
            continue
    if other:
        raise changed(build.index, other, build.file_pattern)
    if touched:
        with contextlib.suppress(OSError):  # a read-only folder: the files are read again the next time
            record.save_files()


def _check_sizes(build: CacheBuild) -> None:
    """InputError if an image is smaller than a resolution, by the files' headers.

    A sample is checked first. If it has a small image, all images are checked, to count them.
    """
    for rows in (_sample(build.index), range(len(build.index.table))):
        small = {}
        for row in rows:
            with contextlib.suppress(UnreadableImageError):  # the build reports all unreadable images
                limit = max_resolution_of_file(build.index.image_path(row), build.fit)
                if limit < build.largest:
                    small[row] = limit
        if not small:
            return
    raise too_small(build.index, small, build.largest)


@contextlib.contextmanager
def _build_lock(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of the image set. The kernel frees it when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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
