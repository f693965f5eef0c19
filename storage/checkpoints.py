"""Read and write the checkpoints of trials, in a folder or at an address that fsspec knows."""

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from acuity.storage.errors import StorageError

logger = logging.getLogger(__name__)
_MAGIC = b"acuity checkpoint\n"
"""Beginning of every file; the SHA-256 of the rest follows, then the rest."""
_LONGEST_NAME_BYTES = 255
"""Limit for a folder's name on the usual file systems."""


def open_checkpoints(address: str) -> "Checkpoints":
    """Open the checkpoints at an address that all workers see: a folder, or one such as s3://bucket/checkpoints.

    StorageError where the protocol is unknown or its package is not installed. The message names the package.
    """
    if address.startswith("file://"):
        address = unquote(urlsplit(address).path)
    try:
        files, folder = fsspec.url_to_fs(os.path.expanduser(address))  # noqa: PTH111  # an address is no path
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(
            f"checkpoints at {_without_secrets(address)} cannot be used ({error}): name a folder that all workers see, "
            "or install what its protocol needs"
        ) from None
    return Checkpoints(files, folder)


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """One file per attempt at a trial, so that a worker that resumes after a pause never overwrites its successor's.

    origin is the number of the trial's first attempt; attempt counts from 1.
    """

    files: AbstractFileSystem
    folder: str

    def read(self, study: str, origin: int, *, attempt: int) -> bytes | None:
        """The newest undamaged checkpoint of this attempt or an earlier one; None where there is none.

        A checkpoint that cannot be read, or with another SHA-256 than at its writing, is passed over with a warning.
        """
        earlier = (found for of, found in self.attempts(study) if of == origin and found <= attempt)
        for found in sorted(earlier, reverse=True):
            path = f"{self._study_folder(study)}/{origin}.{found}.ckpt"
            try:
                return _check_digest(self.files.cat_file(path))
            except FileNotFoundError:
                continue
            except Exception as error:  # each file system has its own errors
                logger.warning("checkpoint %s is not used (%s)", _without_secrets(path), _reason(error))
        return None

    def write(self, study: str, origin: int, *, attempt: int, data: bytes | memoryview) -> None:
        """Replace an attempt's checkpoint. StorageError where the disk is full; the earlier checkpoint then stays."""
        folder = self._study_folder(study)
        path = f"{folder}/{origin}.{attempt}.ckpt"
        header = _MAGIC + hashlib.sha256(data).digest()
        try:
            self.files.makedirs(folder, exist_ok=True)
            if isinstance(self.files, LocalFileSystem):
                try:
                    _write_atomically(path, header, data)
                except FileNotFoundError:  # another worker took the trial, ended it and removed the folder
                    self.files.makedirs(folder, exist_ok=True)
                    _write_atomically(path, header, data)
            else:
                self.files.pipe_file(path, header + data)  # object stores show a file to others once it is complete
        except Exception as error:
            raise StorageError(
                f"a checkpoint of {len(data) / 2**20:.0f} MiB cannot be written to {_without_secrets(folder)} "
                f"({_reason(error)}): make room there, or name another folder (checkpoints under [workers])"
            ) from None

    def attempts(self, study: str) -> set[tuple[int, int]]:
        """The attempts of a study that have a checkpoint, as (origin, attempt)."""
        return {_parse_name(name) for name in self._names(study)}

    def remove(self, study: str, attempts: Container[tuple[int, int]]) -> None:
        """Remove the checkpoints of these attempts, as (origin, attempt), and the rests of interrupted writes."""
        for name in self._names(study):
            if _parse_name(name) in attempts:
                try:
                    self.files.rm_file(f"{self._study_folder(study)}/{name}")
                except FileNotFoundError:  # another worker has removed it
                    continue
                except Exception as error:
                    raise StorageError(
                        f"checkpoint {name} in {_without_secrets(self._study_folder(study))} cannot be removed "
                        f"({_reason(error)}): give this user the right to write there, then run this again"
                    ) from None

    def remove_study(self, study: str) -> None:
        """Remove all checkpoints of a study."""
        try:
            self.files.rm(self._study_folder(study), recursive=True)
        except FileNotFoundError:
            return

    def _names(self, study: str) -> list[str]:
        folder = self._study_folder(study)
        self.files.invalidate_cache()  # other workers write there too
        try:
            entries: list[Any] = self.files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise StorageError(
                f"the checkpoints in {_without_secrets(folder)} cannot be listed ({_reason(error)}): give this user "
                "the right to read there, or name another folder (checkpoints under [workers])"
            ) from None
        names = [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]
        return [name for name in names if re.match(r"\d+\.\d+\.ckpt", name)]

    def _study_folder(self, study: str) -> str:
        on_disk = isinstance(self.files, LocalFileSystem)
        return f"{self.folder.rstrip('/')}/{_folder_name(study) if on_disk else quote(study, safe=' ')}"


def _folder_name(study: str) -> str:
    """The quoted name; shortened with a hash where a file system allows no name of that length."""
    quoted = quote(study, safe=" ")
    if len(quoted) <= _LONGEST_NAME_BYTES:
        return quoted
    return f"{quoted[:100]} {hashlib.sha256(study.encode()).hexdigest()[:32]}"


def _parse_name(name: str) -> tuple[int, int]:
    origin, attempt, *_ = name.split(".")
    return int(origin), int(attempt)


def _check_digest(stored: bytes) -> bytes:
    """The checkpoint in a stored file; ValueError where a bit of the file has changed."""
    start = len(_MAGIC) + hashlib.sha256().digest_size
    data = stored[start:]
    if stored[:start] != _MAGIC + hashlib.sha256(data).digest():
        raise ValueError("it is damaged: its SHA-256 is not the one at its writing")
    return data


def _write_atomically(path: str, *parts: bytes | memoryview) -> None:
    """Write the parts under a temporary name, then move the file, so that no worker reads half of it.

    They are not joined first: a copy of 244 MiB takes .5 s, in which no other thread of Python runs.
    """
    unfinished = Path(f"{path}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as stream:
            stream.writelines(parts)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (message.strip().splitlines() or [type(error).__name__])[0][:200]


def _without_secrets(address: str) -> str:
    """The address without the key that it may hold: scheme://key:secret@bucket/…"""
    scheme, separator, rest = address.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2] if separator else address
