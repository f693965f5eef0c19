"""The launches of an experiment on this host, found by the lock files that they hold."""

import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from sqlalchemy import URL

from acuity.storage.url import masked, parse_url
from acuity.study.errors import UsageError
from acuity.study.fleet.logs import last_line, log_folder, make_folder

_STOP_S = 30.0


@dataclass(frozen=True)
class Launch:
    """A running launch: its process id and its lock file. The lock is the proof, since process ids are reused."""

    process: int
    lock: Path


@contextmanager
def registered_launch(experiment: str, *, storage: URL) -> Iterator[None]:
    """Hold a lock file during the block, by which `find_launches` finds this process."""
    folder = _launch_folder()
    make_folder(folder)
    lock = folder / f"{experiment}.{os.getpid()}.launch"
    unfinished = lock.with_suffix(".new")
    # A new file, also where a link has its name. Child processes do not inherit the lock.
    unfinished.unlink(missing_ok=True)
    with unfinished.open("x", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        json.dump({"process": os.getpid(), "experiment": experiment, "storage": masked(storage)}, stream)
        stream.flush()
        unfinished.replace(lock)  # renamed once the lock is held: a file without a lock is removed
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def start_in_background(experiment: str, arguments: list[str], *, environment: dict[str, str]) -> tuple[int, Path]:
    """Start `acuity` with these arguments and variables in the background; returns its process id and its log.

    Waits until the process holds its lock file or has ended. UsageError where it ended with an error.
    """
    folder = log_folder(experiment)
    make_folder(folder)
    log = folder / f"launch-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with log.open("xb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "acuity", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | environment,
            start_new_session=True,
        )
    while process.poll() is None:
        if any(launch.process == process.pid for launch in find_launches(experiment, storage_url=None)):
            return process.pid, log
        time.sleep(0.1)
    if process.returncode != 0:
        raise UsageError(f"the launch ended with an error: {last_line(log)} (log: {log})")
    return process.pid, log


def find_launches(experiment: str, *, storage_url: str | None) -> list[Launch]:
    """The running launches of an experiment on this host. storage_url: None for the launches of all storages."""
    wanted = masked(parse_url(storage_url)) if storage_url else None
    found = []
    for lock in sorted(_launch_folder().glob("*.launch")):
        if not _is_held(lock):
            lock.unlink(missing_ok=True)  # its process was killed
            continue
        entry = json.loads(lock.read_text(encoding="utf-8"))
        if entry["experiment"] == experiment and wanted in (None, entry["storage"]):
            found.append(Launch(process=entry["process"], lock=lock))
    return found


def stop_launches(experiment: str, *, storage_url: str | None) -> int:
    """End the launches of an experiment on this host; returns their number. The workers release their trials."""
    launches = find_launches(experiment, storage_url=storage_url)
    for launch in launches:
        os.kill(launch.process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    for launch in launches:
        while _is_held(launch.lock):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"the launch of {experiment} (process {launch.process}) has not ended in {_STOP_S:.0f} s: "
                    "kill it if it hangs. Other workers will resume its trials"
                )
            time.sleep(0.1)
    return len(launches)


def _launch_folder() -> Path:
    """The folder of this user's lock files on this host; hosts may share its parent."""
    return Path(platformdirs.user_state_dir("acuity")) / "launches" / (platform.node() or "localhost")


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
