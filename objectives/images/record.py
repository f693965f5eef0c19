"""Read and write the record of a cache: bad images, and the progress of an unfinished build."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from acuity.objectives.images.arrays import CacheArray


@dataclass
class CacheRecord:
    """The record of all arrays of an image set. Arrays without a record are built again, since bad rows are unknown."""

    path: Path
    bad: dict[int, str] = field(default_factory=dict)
    """Row -> the reason why its image cannot be read. The row is black in every array."""
    done: dict[int, set[int]] = field(default_factory=dict)
    """Resolution of an unfinished array -> chunks of images that its draft contains."""

    def save(self, arrays: Sequence[CacheArray]) -> None:
        """Flush the drafts of these arrays, then write the record: after a crash it lists no chunk that is lost."""
        for array in arrays:
            with array.draft.open("rb") as file:
                os.fsync(file.fileno())
        temporary = self.path.with_suffix(f".{os.getpid()}")
        try:
            with temporary.open("w") as file:
                done = {str(resolution): sorted(chunks) for resolution, chunks in self.done.items()}
                json.dump({"bad": {str(row): reason for row, reason in sorted(self.bad.items())}, "done": done}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def read_record(path: Path) -> CacheRecord | None:
    """The record at path. None if it does not exist or is damaged."""
    try:
        table = json.loads(path.read_text())
        return CacheRecord(
            path=path,
            bad={int(row): str(reason) for row, reason in table["bad"].items()},
            done={int(resolution): set(map(int, chunks)) for resolution, chunks in table["done"].items()},
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
