"""The cache's files, and the processes that decode images into them.

A resolution's array is a .npy file. While it is built it has another name, and each process writes its own rows of it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.decoding import Fit, area_average, fit_square, read_grey, usable_side

_HEADER_BYTES = 128


@dataclass(frozen=True)
class CacheArray:
    """One resolution of an image set: uint8 [count, resolution, resolution] in one file."""

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
        """Bytes of the whole file."""
        return self.offset(self.count)

    def offset(self, row: int) -> int:
        """Where in the file an image starts."""
        return _HEADER_BYTES + row * self.resolution**2


@dataclass(frozen=True)
class Job:
    """Images for one process to decode, and the arrays it writes them to, each in the file given with it."""

    rows: tuple[int, ...]
    files: tuple[str, ...]
    targets: tuple[tuple[CacheArray, Path], ...]
    fit: Fit


@dataclass(frozen=True)
class Faults:
    """By row: why an image cannot be read; the largest resolution of one that is smaller than an array."""

    unreadable: dict[int, str] = field(default_factory=dict)
    small: dict[int, int] = field(default_factory=dict)


def open_whole(array: CacheArray) -> np.ndarray | None:
    """The array mapped into memory, read-only, if all of it is there, else None. OSError if it may not be read."""
    try:
        pixels = np.lib.format.open_memmap(array.path, mode="r")
    except (FileNotFoundError, ValueError):  # none, no header, or fewer bytes than the header says
        return None
    alike = pixels.shape == array.shape and pixels.dtype == np.uint8
    return pixels if alike and array.path.stat().st_size == array.size else None


def begin(array: CacheArray) -> None:
    """Make an empty draft of the array's full size."""
    with array.draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": array.shape})
        assert file.tell() == _HEADER_BYTES
        file.truncate(array.size)


def run_jobs(jobs: Sequence[Job], *, processes: int) -> Iterator[tuple[Job, Faults]]:
    """Decode each job's files and write their rows; yields the jobs as they are finished.

    In processes of their own, since a damaged file may crash a decoder. OSError if the disk has no room.
    """
    if not jobs:
        return
    # Spawned, not forked: the caller may hold CUDA, threads and database connections.
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_process
    )
    try:
        futures = {pool.submit(_decode, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise InputError(
            "a process that decodes images was killed, most likely for lack of memory: free some, and start again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def publish(array: CacheArray) -> None:
    """Move a finished draft into place, once the disk has all of it."""
    with array.draft.open("rb") as file:
        os.fsync(file.fileno())
    array.draft.replace(array.path)


def _start_process() -> None:
    """Leave Ctrl-C to the parent, end with it even if it is killed, and use one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode(job: Job) -> Faults:
    """Decode a job's images and write each to its place in every target."""
    faults = Faults()
    largest = max(array.resolution for array, _ in job.targets)
    with contextlib.ExitStack() as stack:
        # Written, not mapped: on a full disk a mapped page ends the process, a write says so.
        files = [(array, stack.enter_context(path.open("r+b"))) for array, path in job.targets]
        for row, path in zip(job.rows, job.files, strict=True):
            try:
                image = read_grey(Path(path))
            except UnreadableImageError as error:
                faults.unreadable[row] = str(error)
                continue
            side = usable_side((image.shape[0], image.shape[1]), job.fit)
            if side < largest:
                faults.small[row] = side
                continue
            square = fit_square(image, job.fit)
            for array, file in files:
                file.seek(array.offset(row))
                file.write(area_average(square, array.resolution).data)
    return faults
