"""Where a trial's checkpoint lives, for whichever worker resumes it."""

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from storage.errors import StorageError


def open_checkpoints(address: str) -> "Checkpoints":
    """The checkpoints at an address: a folder, which all workers of the fleet have to see, as a path or as file:///path."""
    scheme, _, _ = address.partition("://")
    if scheme == address:
        return Checkpoints(Path(address).expanduser())
    if scheme == "file":
        return Checkpoints(Path(unquote(urlsplit(address).path)))
    raise StorageError(
        f"checkpoints at {scheme}://… are not known: name a folder that all workers see (/path, file:///path)"
    )


@dataclass(frozen=True)
class Checkpoints:
    """One file per attempt at a trial, so that a worker woken from the dead never overwrites its successor's.

    origin is the number of the trial's first attempt, attempt counts from 1.
    """

    folder: Path

    def read(self, study: str, origin: int, *, attempt: int) -> bytes | None:
        """The newest checkpoint of this attempt or an earlier one; None where there is none, or no longer."""
        found = [(int(path.name.split(".")[1]), path) for path in self._of_study(study).glob(f"{origin}.*.ckpt")]
        for _, path in sorted((pair for pair in found if pair[0] <= attempt), reverse=True):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(
                    f"checkpoint {path} cannot be read ({error.strerror}): mend that, or delete it to restart its trial"
                ) from None
        return None

    def write(self, study: str, origin: int, *, attempt: int, data: bytes) -> None:
        """Keep an attempt's newest checkpoint; where the disk is full a StorageError, and the earlier one stays."""
        folder = self._of_study(study)
        path = folder / f"{origin}.{attempt}.ckpt"
        unfinished = folder / f"{path.name}.{secrets.token_hex(4)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"a checkpoint of {len(data) / 2**20:.0f} MiB cannot be written to {folder} ({error.strerror}): "
                "make room there, or name another folder (checkpoints under [workers])"
            ) from None

    def remove(self, study: str, origin: int) -> None:
        """Remove the checkpoints of every attempt at a trial, with what an interrupted write has left."""
        for path in self._of_study(study).glob(f"{origin}.*"):
            path.unlink(missing_ok=True)

    def remove_study(self, study: str) -> None:
        """Remove all of a study's: another study of its name counts its trials from 0 again."""
        shutil.rmtree(self._of_study(study), ignore_errors=True)

    def _of_study(self, study: str) -> Path:
        return self.folder / quote(study, safe=" ")
