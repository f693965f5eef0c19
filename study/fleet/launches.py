"""The launches of an experiment on this host, found by the locks that they hold: a process id may be reused."""

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

_STOP_S = 30.0


@dataclass(frozen=True)
class Launch:
    """A launch that runs: its process, and the lock file that it holds."""

    process: int
    lock: Path


def launch_folder() -> Path:
    """The folder of this user's lock files on this host; hosts may share its parent."""
    return Path(platformdirs.user_state_dir("acuity")) / "launches" / (platform.node() or "localhost")


@contextmanager
def registered_launch(experiment: str, *, storage: URL) -> Iterator[None]:
    """Hold a lock file during the block, by which `find_launches` finds this process."""
    folder = launch_folder()
    make_folder(folder)
    lock = folder / f"{experiment}.{os.getpid()}.launch"
    unfinished = lock.with_suffix(".new")
    with unfinished.open("w", encoding="utf-8") as stream:  # child processes do not inherit the lock
        fcntl.flock(stream, fcntl.LOCK_EX)
        json.dump({"process": os.getpid(), "experiment": experiment, "storage": masked(storage)}, stream)
        stream.flush()
        unfinished.replace(lock)  # renamed once the lock is held: a file without a lock is removed
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def find_launches(experiment: str, *, storage_url: str | None) -> list[Launch]:
    """The launches of an experiment that run on this host; storage_url: None for those of every storage."""
    wanted = masked(parse_url(storage_url)) if storage_url else None
    found = []
    for lock in sorted(launch_folder().glob("*.launch")):
        if not _is_held(lock):
            lock.unlink(missing_ok=True)  # its process was killed
            continue
        entry = json.loads(lock.read_text(encoding="utf-8"))
        if entry["experiment"] == experiment and wanted in (None, entry["storage"]):
            found.append(Launch(process=entry["process"], lock=lock))
    return found


def start_in_background(experiment: str, arguments: list[str], *, environment: dict[str, str]) -> tuple[int, Path]:
    """Start `acuity` with these arguments and variables in the background; returns its process and its log.

    Waits until the process is a launch, or has ended.
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
        raise UsageError(f"the launch ended with an error: {last_words(log)} (log: {log})")
    return process.pid, log


def log_folder(experiment: str) -> Path:
    """The folder of the logs of an experiment's launches and workers on this host."""
    return Path(platformdirs.user_log_dir("acuity")) / experiment


def make_folder(folder: Path, *, named_by: str = "XDG_STATE_HOME") -> None:
    """Make a folder; UsageError where that fails. named_by: the variable or key that names another place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made ({error.strerror}): logs and the locks of launches lie there. Name another place "
            f"with {named_by}"
        ) from None


def last_words(log: Path) -> str:
    """The last line of a log, which has the error message of a command."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("acuity: ") if lines else "it left no message"


def stop_launches(experiment: str, *, storage_url: str | None) -> int:
    """End the launches of an experiment on this host and return their number; the workers hand their trials back."""
    launches = find_launches(experiment, storage_url=storage_url)
    if not launches:
        raise UsageError(
            f"no launch of {experiment} runs on {platform.node()} as this user. A worker that was started by itself "
            "(`acuity worker`) ends by Ctrl-C or SIGTERM"
        )
    for launch in launches:
        os.kill(launch.process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    for launch in launches:
        while _is_held(launch.lock):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"the launch of {experiment} (process {launch.process}) has not ended in {_STOP_S:.0f} s: "
                    "see what it waits for, or kill it; its trials are taken up again all the same"
                )
            time.sleep(0.1)
    return len(launches)


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
