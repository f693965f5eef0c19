"""Start workers on this host, watch them, restart one that crashes, and end them all together."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from study.errors import UsageError
from study.register import Registered

logger = logging.getLogger(__name__)

_EXIT_S = 10.0
_MAX_RESTARTS = 3
_REFRESH_S = 0.5


@dataclass(eq=False)
class _Member:
    """One worker process of the fleet, restarted under the same number."""

    command: list[str]
    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = field(default=0)

    def start(self) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends its workers.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def ended(self) -> int | None:
        assert self.process is not None
        return self.process.poll()


def log_folder(experiment: str) -> Path:
    """Where this host's workers of an experiment write their logs."""
    return Path(platformdirs.user_log_dir("acuity")) / experiment


def run_fleet(
    registered: Registered, *, storage_url: str | None, workers: int, device: str, refresh: Callable[[int], None]
) -> None:
    """Run workers on this host until every budget is finished; refresh(workers alive) is called twice a second.

    Ctrl-C and SIGTERM end the workers first: each hands its trial back. UsageError where workers keep crashing.
    """
    with _sigterm_as_interrupt():
        members = [
            _member(registered, number=number, storage_url=storage_url, workers=workers, device=device)
            for number in range(workers)
        ]
        try:
            for member in members:
                member.start()
            while _alive(members):
                refresh(sum(member.ended() is None for member in members))
                time.sleep(_REFRESH_S)
        finally:
            _end(members)
        refresh(0)


def _alive(members: list[_Member]) -> bool:
    """Restart who crashed; False once all have ended. UsageError where that does not help."""
    for member in members:
        code = member.ended()
        if code in (None, 0):
            continue
        if code == 2 or member.restarts >= _MAX_RESTARTS or code == 1:
            raise UsageError(f"a worker ended with an error: {_last_words(member.log)} (log: {member.log})")
        logger.warning("a worker crashed (exit status %d) and is started again; log: %s", code, member.log)
        member.restarts += 1
        member.start()
    return any(member.ended() is None for member in members)


def _member(registered: Registered, *, number: int, storage_url: str | None, workers: int, device: str) -> _Member:
    name = registered.experiment.name
    folder = log_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "study", "worker", name, "--device", device, "--workers", str(workers)]
    # The address goes by the environment: a command line, and a password in it, is everybody's to read.
    return _Member(
        command=command,
        log=folder / f"worker-{os.getpid()}-{number}.log",
        environment=os.environ | ({"ACUITY_STORAGE": storage_url} if storage_url else {}),
    )


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("acuity: ") if lines else "it left no message"


def _end(members: list[_Member]) -> None:
    running = [member.process for member in members if member.process is not None and member.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _EXIT_S
    for process in running:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("a worker (process %d) did not end within %.0f s and is killed", process.pid, _EXIT_S)
            process.kill()
            process.wait()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
