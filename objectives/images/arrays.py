"""The cache's array files, and the processes that decode images into them.

The array of a resolution is a .npy file. While it is built it is a draft under another name, and each process writes
other rows of the draft.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from acuity.objectives.device.processes import spawned_pool
from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.decoding import decode_grey, read_file
from acuity.objectives.images.resizing import Fit, area_average, fit_square, max_resolution

_HEADER_BYTES = 128


@dataclass(frozen=True)
class CacheArray:
    """The array of an image set at one resolution: uint8 [count, resolution, resolution]."""

    folder: Path
    key: str
    count: int
    resolution: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}-{self.resolution}px.npy"

    @property
    def draft(self) -> Path:
        return self.folder / f"{self.key}-{self.resolution}px.partial"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.count, self.resolution, self.resolution

    @property
    def size(self) -> int:
        """Bytes of the complete file."""
        return self.offset(self.count)

    def offset(self, row: int) -> int:
        """Position of an image in the file, in bytes."""
        return _HEADER_BYTES + row * self.resolution**2


@dataclass(frozen=True)
class DecodingJob:
    """Images that one process decodes, and the arrays and files that it writes them to."""

    rows: tuple[int, ...]
    files: tuple[str, ...]
    targets: tuple[tuple[CacheArray, Path], ...]
    fit: Fit


@dataclass(frozen=True)
class JobReport:
    """What a job found in the files of its images, by row."""

    unreadable: dict[int, str] = field(default_factory=dict)
    """Row -> reason."""
    small: dict[int, int] = field(default_factory=dict)
    """Row of an image that is smaller than an array -> the largest resolution that does not enlarge it."""
    depths: dict[int, int] = field(default_factory=dict)
    """Row of an image of 16 bits -> the estimated bit depth by which it was scaled."""
    files: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Row -> size in bytes, time of the last change in ns, and CRC-32 of the file."""


def open_complete(array: CacheArray) -> np.ndarray | None:
    """The array, mapped into memory, read-only. None if it is missing or incomplete. OSError if it cannot be read."""
    try:
        pixels = np.lib.format.open_memmap(array.path, mode="r")
    except (FileNotFoundError, ValueError):  # missing, without header, or truncated
        return None
    matches = pixels.shape == array.shape and pixels.dtype == np.uint8
    return pixels if matches and array.path.stat().st_size == array.size else None


def create_draft(array: CacheArray) -> None:
    """Make a draft of the array's size: the header, then zeros. It is a new file, also where a link has its name."""
    array.draft.unlink(missing_ok=True)
    with array.draft.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": array.shape})
        assert file.tell() == _HEADER_BYTES
        file.truncate(array.size)


def publish(array: CacheArray) -> None:
    """Flush a finished draft to the disk, then rename it to the array's file."""
    with array.draft.open("rb") as file:
        os.fsync(file.fileno())
    array.draft.replace(array.path)


def run_jobs(jobs: Sequence[DecodingJob], *, processes: int) -> Iterator[tuple[DecodingJob, JobReport]]:
    """Decode the images of the jobs in separate processes, since a damaged file may crash a decoder.

    Yields each job when it is finished. InputError if a process was killed. OSError if the disk is full.
    """
    if not jobs:
        return
    pool = spawned_pool(min(processes, len(jobs)), initializer=_start_process)
    try:
        futures = {pool.submit(decode_job, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise InputError(
            "a process that decodes images was killed, most likely for lack of memory: free memory, then start again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def decode_job(job: DecodingJob) -> JobReport:
    """Decode the images of a job and write each to its row of every target that does not enlarge it."""
    report = JobReport()
    largest = max(array.resolution for array, _ in job.targets)
    with contextlib.ExitStack() as stack:
        # On a full disk a write raises OSError; a memory-mapped page would end the process by SIGBUS.
        files = [(array, stack.enter_context(path.open("r+b"))) for array, path in job.targets]
        for row, path in zip(job.rows, job.files, strict=True):
            try:
                report.files[row], data = _read_with_state(Path(path))
                image = decode_grey(data)
            except UnreadableImageError as error:
                report.unreadable[row] = str(error)
                continue
            if image.depth is not None:
                report.depths[row] = image.depth
            limit = max_resolution((image.pixels.shape[0], image.pixels.shape[1]), job.fit)
            if limit < largest:
                report.small[row] = limit
            square = fit_square(image.pixels, job.fit)
            for array, file in files:
                if array.resolution <= limit:
                    file.seek(array.offset(row))
                    file.write(area_average(square, array.resolution).data)
    return report


def _read_with_state(path: Path) -> tuple[tuple[int, int, int], bytes]:
    """The state of a file as in `JobReport.files`, and its content."""
    data = read_file(path)
    return (len(data), path.stat().st_mtime_ns, zlib.crc32(data)), data


def _start_process() -> None:
    """Ignore Ctrl-C, which the parent handles; end when the parent ends, even by SIGKILL; use one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
