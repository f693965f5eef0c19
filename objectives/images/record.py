"""Read and write the record of a cache: bad images, states of the files, and the progress of an unfinished build."""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from acuity.objectives.atomic_write import write_atomically
from acuity.objectives.images.arrays import CacheArray, JobReport


@dataclass
class CacheRecord:
    """The record of all arrays of an image set. Arrays without a record are built again, since bad rows are unknown."""

    path: Path
    files: np.ndarray
    """int64 [N, 3]: size in bytes, time of the last change in ns and CRC-32 of each file that was decoded. Else -1."""
    bad: dict[int, str] = field(default_factory=dict)
    """Row -> the reason why its image cannot be read. The row is black in every array."""
    small: dict[int, int] = field(default_factory=dict)
    """Row -> the largest resolution that does not enlarge its image. The row is black in larger arrays."""
    depths: dict[int, int] = field(default_factory=dict)
    """Row of an image of 16 bits -> the estimated bit depth by which it was scaled."""
    done: dict[int, set[int]] = field(default_factory=dict)
    """Resolution of an unfinished array -> chunks of images that its draft contains."""
    digests: dict[int, list[str]] = field(default_factory=dict)
    """Resolution of a complete array -> SHA-256 of its shards."""

    def left_out(self, resolution: int) -> dict[int, str]:
        """Row -> reason of each image that is bad or smaller than the resolution."""
        small = {
            row: f"{limit} px, smaller than the largest resolution of {resolution} px"
            for row, limit in self.small_below(resolution).items()
        }
        return small | self.bad

    def small_below(self, resolution: int) -> dict[int, int]:
        """The part of `small` below a resolution."""
        return {row: limit for row, limit in self.small.items() if limit < resolution}

    def add(self, report: JobReport) -> None:
        """Add the images of a job."""
        self.bad |= report.unreadable
        self.small |= report.small
        self.depths |= report.depths
        for row, state in report.files.items():
            self.files[row] = state

    def forget(self, row: int) -> None:
        """Remove an image whose file is decoded again."""
        for facts in (self.bad, self.small, self.depths):
            facts.pop(row, None)
        self.files[row] = -1

    def save(self, arrays: Sequence[CacheArray]) -> None:
        """Flush the drafts of these arrays, then write the record: after a crash it lists no chunk that is lost."""
        for array in arrays:
            with array.draft.open("rb") as file:
                os.fsync(file.fileno())
        self.save_files()
        table = {
            "bad": _text_keys(self.bad),
            "small": _text_keys(self.small),
            "depths": _text_keys(self.depths),
            "done": {str(resolution): sorted(chunks) for resolution, chunks in self.done.items()},
            "digests": {str(resolution): digests for resolution, digests in self.digests.items()},
        }
        write_atomically(self.path, json.dumps(table | {"sha256": _table_digest(table)}).encode())

    def save_files(self) -> None:
        """Write the states of the files alone."""
        content = io.BytesIO()
        np.save(content, self.files)
        write_atomically(_files_path(self.path), content.getvalue() + hashlib.sha256(content.getvalue()).digest())


def new_record(path: Path, count: int) -> CacheRecord:
    """The record of an image set of which nothing is built. Writes no file."""
    return CacheRecord(path, files=np.full((count, 3), -1, dtype=np.int64))


def read_record(path: Path, count: int) -> CacheRecord | None:
    """The record at path. None if it does not exist, is damaged, or is not of this number of images."""
    try:
        table = json.loads(path.read_text())
        files = _read_files(_files_path(path))
        if files.shape != (count, 3) or files.dtype != np.int64 or table.pop("sha256") != _table_digest(table):
            return None
        return CacheRecord(
            path=path,
            files=files,
            bad={int(row): str(reason) for row, reason in table["bad"].items()},
            small={int(row): int(limit) for row, limit in table["small"].items()},
            depths={int(row): int(depth) for row, depth in table["depths"].items()},
            done={int(resolution): set(map(int, chunks)) for resolution, chunks in table["done"].items()},
            digests={int(resolution): list(map(str, digests)) for resolution, digests in table["digests"].items()},
        )
    except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _table_digest(table: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _read_files(path: Path) -> np.ndarray:
    """The states of the files. ValueError where the file is damaged."""
    stored = path.read_bytes()
    content, digest = stored[: -hashlib.sha256().digest_size], stored[-hashlib.sha256().digest_size :]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("damaged")
    files: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return files


def _files_path(path: Path) -> Path:
    return path.with_suffix(".files")


def _text_keys(facts: Mapping[int, str | int]) -> dict[str, str | int]:
    return {str(row): fact for row, fact in sorted(facts.items())}
