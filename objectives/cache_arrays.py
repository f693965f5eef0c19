"""The cache's files, and the processes that decode images into them.

A resolution's array is a .npy file. While it is built it has another name, and each process writes its own rows of it.
"""

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

from objectives.errors import InputError
from objectives.pixels import UnreadableImageError, area_average, read_square

_HEADER_BYTES = 128
_CHUNK_BYTES = 16 << 20
_MOST_IN_CHUNK = 64


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
class Faults:
    """By row: why an image cannot be read; the longer side of one that is smaller than a resolution."""

    unreadable: dict[int, str] = field(default_factory=dict)
    small: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive images for one process to decode, and the arrays it writes them to, the largest last."""

    first: int
    files: tuple[Path, ...]
    arrays: tuple[CacheArray, ...]


def open_whole(array: CacheArray) -> np.ndarray | None:
    """The array mapped into memory, read-only, if all of it is there, else None. OSError if it may not be read."""
    try:
        pixels = np.lib.format.open_memmap(array.path, mode="r")
    except (FileNotFoundError, ValueError):  # none, no header, or fewer bytes than the header says
        return None
    alike = pixels.shape == array.shape and pixels.dtype == np.uint8
    return pixels if alike and array.path.stat().st_size == array.size else None


def decode_into_drafts(
    arrays: Sequence[CacheArray], files: Sequence[Path], *, processes: int
) -> Iterator[tuple[int, Faults]]:
    """Decode each file once and write its row of every draft; yields (images done since the last time, their faults).

    In processes of their own, since a damaged file may crash a decoder. OSError if the disk has no room.
    """
    for array in arrays:
        _begin(array)
    largest_last = tuple(sorted(arrays, key=lambda array: array.resolution))
    length = _chunk_length(largest_last)
    chunks = [_Chunk(i, tuple(files[i : i + length]), largest_last) for i in range(0, len(files), length)]
    # Spawned, not forked: the caller may hold CUDA, threads and database connections.
    pool = ProcessPoolExecutor(
        min(processes, len(chunks)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_process
    )
    try:
        futures = {pool.submit(_write_chunk, chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield len(futures[future].files), future.result()
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


def _begin(array: CacheArray) -> None:
    with array.draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": array.shape})
        assert file.tell() == _HEADER_BYTES
        file.truncate(array.size)


def _chunk_length(arrays: Sequence[CacheArray]) -> int:
    """Images a chunk: few enough for a process's memory and a smooth progress bar, enough to keep it busy."""
    image_bytes = sum(array.resolution**2 for array in arrays)
    return min(max(_CHUNK_BYTES // image_bytes, 1), _MOST_IN_CHUNK)


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


def _write_chunk(chunk: _Chunk) -> Faults:
    """Decode a chunk's images and write them to their place in each draft."""
    faults = Faults()
    blocks = [np.zeros((len(chunk.files), *array.shape[1:]), dtype=np.uint8) for array in chunk.arrays]
    for position, path in enumerate(chunk.files):
        try:
            square = read_square(path)
        except UnreadableImageError as error:
            faults.unreadable[chunk.first + position] = str(error)
            continue
        if len(square) < chunk.arrays[-1].resolution:
            faults.small[chunk.first + position] = len(square)
            continue
        for array, block in zip(chunk.arrays, blocks, strict=True):
            block[position] = area_average(square, array.resolution)
    for array, block in zip(chunk.arrays, blocks, strict=True):
        # Written, not mapped: on a full disk a mapped page ends the process, a write says so.
        with array.draft.open("r+b") as file:
            file.seek(array.offset(chunk.first))
            file.write(block.data)
    return faults
