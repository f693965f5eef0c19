"""What is known of a cache beside its arrays: which images are bad, and how far an interrupted build had come."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from acuity.objectives.images.arrays import CacheArray


@dataclass
class CacheRecord:
    """One file for all resolutions of a set; arrays without it are not trusted, since it names their bad rows."""

    path: Path
    bad: dict[int, str] = field(default_factory=dict)
    """Row -> why its image cannot be read; that row of every array is black."""
    done: dict[int, set[int]] = field(default_factory=dict)
    """Resolution of an unfinished array -> the chunks of images that its draft holds."""

    def save(self, arrays: Sequence[CacheArray]) -> None:
        """Bring the drafts of these arrays to the disk, then say so: after a crash the record tells the truth."""
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
    """The record at path; None if there is none or it is damaged."""
    try:
        table = json.loads(path.read_text())
        return CacheRecord(
            path=path,
            bad={int(row): str(reason) for row, reason in table["bad"].items()},
            done={int(resolution): set(map(int, chunks)) for resolution, chunks in table["done"].items()},
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
