"""Start the embedded Postgres for its first user, share it, and stop it after the last user.

Every user holds a shared flock on users.lock. keeper.py stops the server when no user holds it. Where the server ends
earlier, one of its users starts it again. The server runs if a connection succeeds, and has ended if server.lock is
free. Process ids are not used, since they are recycled.
"""

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy import URL

from acuity.storage.embedded.account import server_account, server_binaries
from acuity.storage.embedded.folder import (
    DATABASE,
    USER,
    default_folder,
    error_lines,
    initialise_cluster,
    make_folder,
    read_password,
)
from acuity.storage.errors import StorageError
from acuity.storage.url import DRIVER, EMBEDDED_LOCK, embedded_arguments

logger = logging.getLogger(__name__)
_START_TIMEOUT_S = 120.0
"""Enough for a recovery after a crash, or for a last checkpoint before a stop, on a slow disk."""
_STOP_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5
_POLL_S = 0.02
_WATCH_S = 1.0
_LONGEST_WATCH_S = 30.0
"""Longest pause between two attempts to start a server that does not start."""


@contextmanager
def embedded_server(folder: Path | None = None) -> Iterator[URL]:
    """Use the embedded Postgres during the block and yield its URL. The first user starts the server.

    folder: the server's folder, by default ACUITY_EMBEDDED_DIR or a folder in the user's data. This process and its
    forks are users; the last user waits until the server has stopped.
    """
    account = server_account()
    folder = make_folder(folder or default_folder(), account)
    users_lock = _open_lock(folder, "users.lock")
    try:
        _lock(users_lock, fcntl.LOCK_SH, "its earlier server is still stopping", folder)
        url = _start_once(folder, account)
        with _restarting(folder, account):
            yield url
    finally:
        os.close(users_lock)
        _wait_while_stopping(folder)


def _start_once(folder: Path, account: str | None) -> URL:
    """Start the server unless it runs. Of several processes one starts it, and the others wait for that."""
    start_lock = _open_lock(folder, "start.lock")
    try:
        _lock(start_lock, fcntl.LOCK_EX, "another process is still starting it", folder)
        return _ensure_running(folder, account)
    finally:
        os.close(start_lock)


@contextmanager
def _restarting(folder: Path, account: str | None) -> Iterator[None]:
    """Start the server again during the block, where it has ended although this process uses it: after a kill -9."""
    done = threading.Event()

    def watch() -> None:
        pause_s = _WATCH_S
        while not done.wait(pause_s * SystemRandom().uniform(0.5, 1.5)):
            try:
                if not _is_held(folder, EMBEDDED_LOCK):
                    logger.warning("the embedded Postgres in %s has ended; one of its users starts it again", folder)
                    _start_once(folder, account)
                pause_s = _WATCH_S
            except (StorageError, OSError) as error:
                logger.warning("%s", error)
                pause_s = min(2 * pause_s, _LONGEST_WATCH_S)

    watcher = threading.Thread(target=watch, name=f"watcher of {folder}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(timeout=_WATCH_S)  # a server that it starts later has no user and ends


def _ensure_running(folder: Path, account: str | None) -> URL:
    data = folder / "data"
    if data.exists():
        url = _url(folder)
        if _answers(url):
            return url
        # The server may start, recover, or stop after its keeper was killed. Wait until it answers or has ended.
        if _wait_until_answers(url, folder):
            return url
    binaries = server_binaries(folder, account)
    initialise_cluster(folder, binaries=binaries, account=account)
    # server.lock is free, so these files are a crashed server's. Postgres would refuse to start where another process
    # or a zombie has the process id in them.
    for stale in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (data / stale).unlink(missing_ok=True)
    url = _url(folder)
    if not _start(folder, binaries, account) or not _wait_until_answers(url, folder):
        raise StorageError(
            f"the embedded Postgres in {folder} did not start: {_log_end(folder)}. See {folder / 'server.log'}"
        )
    return url


def _start(folder: Path, binaries: Path, account: str | None) -> bool:
    """Start the keeper and the server; whether the keeper started it."""
    log = folder / "server.log"
    if log.exists():
        log.replace(folder / "server.log.1")
    keeper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))]
    command = [*keeper, str(folder), str(binaries / "postgres"), *([account] if account else [])]
    with log.open("xb") as stream:
        log.chmod(0o600)
        # In a new session Ctrl-C in this terminal does not reach the server. The environment is minimal, since Postgres
        # would read PGPORT and similar variables.
        started = subprocess.run(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return started.returncode == 0


def _wait_until_answers(url: URL, folder: Path) -> bool:
    """True once a connection succeeds, False once no process of the server lives."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        lives = _is_held(folder, EMBEDDED_LOCK)
        if lives and _answers(url):
            return True
        if not lives:
            return False
        time.sleep(_POLL_S)
    raise StorageError(
        f"the embedded Postgres in {folder} does not answer after {_START_TIMEOUT_S:.0f} s: {_log_end(folder)}. Try "
        f"again when the host is less busy, or see {folder / 'server.log'}"
    )


def _answers(url: URL) -> bool:
    try:
        _connect(url).close()
    except psycopg2.OperationalError as error:
        if f'database "{DATABASE}" does not exist' not in str(error):
            return False
        _make_database(url)
    return True


def _make_database(url: URL) -> None:
    """Make the database in a new cluster. The caller holds the start lock."""
    connection = _connect(url.set(database="postgres"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"create database {DATABASE}")
    finally:
        connection.close()


def _connect(url: URL) -> psycopg2.extensions.connection:
    arguments: dict[str, Any] = {**embedded_arguments(url), "connect_timeout": _CONNECT_TIMEOUT_S}
    connection: psycopg2.extensions.connection = psycopg2.connect(
        host=url.query["host"], user=url.username, password=url.password, dbname=url.database, **arguments
    )
    return connection


def _url(folder: Path) -> URL:
    return URL.create(
        DRIVER, username=USER, password=read_password(folder), database=DATABASE, query={"host": str(folder / "data")}
    )


def _wait_while_stopping(folder: Path) -> None:
    """Return when the server is down or others use it, so that the last user leaves no server process behind."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline and _is_held(folder, EMBEDDED_LOCK):
        if _is_shared(folder):
            return
        time.sleep(_POLL_S)


def _is_shared(folder: Path) -> bool:
    """Whether users hold users.lock: it is not free, and the keeper does not hold it alone to stop the server."""
    lock = _open_lock(folder, "users.lock")
    try:
        if _try_lock(lock, fcntl.LOCK_EX):
            return False
        return _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _is_held(folder: Path, name: str) -> bool:
    lock = _open_lock(folder, name)
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _lock(lock: int, how: int, reason: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _try_lock(lock, how):
        if time.monotonic() > deadline:
            raise StorageError(
                f"the embedded Postgres in {folder} cannot be used after {_START_TIMEOUT_S:.0f} s: {reason}. "
                f"See {folder / 'server.log'}"
            )
        time.sleep(_POLL_S)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_lock(folder: Path, name: str) -> int:
    try:
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be used for the embedded Postgres ({error.strerror}). "
            "Name another folder with ACUITY_EMBEDDED_DIR"
        ) from None


def _log_end(folder: Path) -> str:
    """The log's first error and last three lines in one line, and the log's path."""
    log = folder / "server.log"
    errors = error_lines(log.read_text(errors="replace")) if log.exists() else ""
    return f"{errors or 'its log is empty'} (all of it: {log})"
