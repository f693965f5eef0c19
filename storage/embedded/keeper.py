"""The embedded Postgres's parent process: stops it once its last user is gone, however that one went.

Runs by its path (`python -I -S embedded_keeper.py FOLDER POSTGRES [ACCOUNT]`) and imports the standard library alone,
to start in a moment and stay small. FOLDER/users.lock is shared by every user of the server, and the kernel releases a
user's share even after a kill -9. FOLDER/server.lock is inherited by every process of the server, so it is free only
when none of them lives: a process id can be recycled, a lock cannot.
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
    """Run the server until users.lock is nobody's; a SIGKILL of this process stops it as well (on Linux)."""
    server_lock = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _lock_soon(server_lock):
        return 3
    if os.fork():
        return 0  # whoever started us need not reap us
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
    fcntl.flock(users_lock, fcntl.LOCK_EX)  # kept to our end: newcomers wait until the server is down
    server.send_signal(signal.SIGINT)  # Postgres's fast shutdown


def _lock_soon(lock: int) -> bool:
    """Others probe this lock for an instant, so once is not enough."""
    for _ in range(100):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def die_with_parent(number: signal.Signals) -> Callable[[], object] | None:
    """For Popen's preexec_fn: the kernel sends the child this signal once its parent is gone. None but on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, int(number))


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), postgres=sys.argv[2], account=sys.argv[3] if len(sys.argv) > 3 else None))
