"""The parent process of the embedded Postgres: it stops the server when the last user is gone.

It runs by its path (`python -I -S keeper.py FOLDER POSTGRES [ACCOUNT]`) and imports only the standard library, to start
fast and stay small. Every user of the server holds a shared lock on FOLDER/users.lock; the kernel releases it even
after a kill -9. Every process of the server inherits FOLDER/server.lock, so it is free only when none of them lives.
Another process can get the id of a dead one, so process ids are no evidence.
"""

import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def keep(folder: Path, *, postgres: str, account: str | None) -> int:
    """Run the server until no user holds users.lock; on Linux a SIGKILL of this process stops the server too.

    Returns the server's exit status; 3 where another server holds server.lock; 0 in the process that was called.
    """
    server_lock = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _lock_soon(server_lock):
        return 3
    if os.fork():
        return 0  # the caller need not wait for the server
    server = subprocess.Popen(
        [postgres, "-D", str(folder / "data")],
        cwd=folder,
        pass_fds=[server_lock],
        preexec_fn=die_with_parent(signal.SIGINT),
        user=account,
        group=None if account is None else pwd.getpwnam(account).pw_gid,
        extra_groups=None if account is None else [],
    )
    threading.Thread(target=_stop_when_unused, args=(folder, server), daemon=True).start()
    return server.wait()


def _stop_when_unused(folder: Path, server: "subprocess.Popen[bytes]") -> None:
    users_lock = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(users_lock, fcntl.LOCK_EX)  # held until this process ends: new users wait until the server is down
    server.send_signal(signal.SIGINT)  # Postgres's fast shutdown


def _lock_soon(lock: int) -> bool:
    """Try to lock for 2 s: other processes hold the lock for an instant when they check it."""
    for _ in range(100):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def die_with_parent(number: signal.Signals) -> Callable[[], object] | None:
    """For Popen's preexec_fn: the kernel sends the child this signal when its parent ends. None where not on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, int(number))


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), postgres=sys.argv[2], account=sys.argv[3] if len(sys.argv) > 3 else None))
