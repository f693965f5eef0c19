"""Run a fleet of workers on this host: start them, restart one that crashes, and end them together."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acuity.storage.connection import OUTAGES, first_line
from acuity.storage.database import Database
from acuity.storage.embedded.keeper import die_with_parent
from acuity.storage.errors import OutageError
from acuity.study.errors import UsageError
from acuity.study.fleet.launches import registered_launch
from acuity.study.fleet.logs import last_line, log_folder, make_folder
from acuity.study.fleet.mps import shared_gpus
from acuity.study.fleet.placement import Placement
from acuity.study.fleet.restarts import NextStep, RestartPolicy
from acuity.study.registry.record import Registered
from acuity.study.units import counted

logger = logging.getLogger(__name__)
_EXIT_S = 12.0
_OUTAGE_PAUSE_S = 5.0
_REFRESH_S = 0.5


@dataclass(eq=False)
class _Worker:
    """One worker of the fleet. Each restart is a new process with the same log."""

    command: list[str]
    log: Path
    environment: dict[str, str]
    restarts: RestartPolicy
    cores: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    not_before: float = 0.0
    given_up: NextStep | None = None
    """The reason why the worker is not restarted."""

    def start(self) -> None:
        self.began = time.monotonic()
        with self.log.open("ab") as log:
            # In a new session, so Ctrl-C in the terminal reaches only this process, which then ends its workers.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                preexec_fn=self._prepare_process(),
            )

    def _prepare_process(self) -> Callable[[], None]:
        """A function that the new process calls before its program."""
        die, cores = die_with_parent(signal.SIGTERM), self.cores

        def prepare() -> None:
            if die is not None:
                die()
            if cores:
                os.sched_setaffinity(0, cores)

        return prepare

    def exit_status(self) -> int | None:
        """None while the process runs or waits for its restart."""
        return None if self.process is None else self.process.poll()


def run_fleet(
    database: Database,
    registered: Registered,
    *,
    placements: list[Placement],
    refresh: Callable[[int], None],
    say: Callable[[str], None],
) -> None:
    """Run workers on this host until nothing is left to do; refresh(workers alive) is called twice a second.

    Workers that share a GPU do so through NVIDIA MPS where it is installed. During an outage of the database it waits,
    as the workers do. On Ctrl-C or SIGTERM it says so at once and ends the workers first, and each releases its trial.
    A second signal kills the workers. say: shows one message to the user. UsageError where every worker has ended with
    an error or crashes repeatedly. OutageError where an outage is longer than the experiment's patience.
    """
    name = registered.experiment.name
    with (
        _sigterm_as_interrupt(),
        registered_launch(name, storage=database.url),
        shared_gpus(placements) as placements,
    ):
        outage = _OutageLimit(60 * registered.experiment.workers.storage_patience_min)
        workers = [
            _prepare_worker(name, placement, database.environment(), number=number, outage_limit_s=outage.limit_s)
            for number, placement in enumerate(placements)
        ]
        try:
            for worker in workers:
                worker.start()
            while _restart_crashed(workers):
                with outage.tolerated():
                    refresh(sum(worker.exit_status() is None for worker in workers))
                time.sleep(_REFRESH_S)
        finally:
            _end(workers, say)
        refresh(0)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, and on SIGHUP (a closed terminal) unless nohup ignores it.

    Python sets handlers in the main thread alone. In another thread of a program the signals keep its handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@dataclass
class _OutageLimit:
    """The longest outage of the database. The workers have the same limit, so all processes give up together."""

    limit_s: float
    away_since: float | None = None

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Ignore an outage in the block until the limit is exceeded; OutageError then."""
        try:
            yield
        except OUTAGES as error:
            now = time.monotonic()
            if self.away_since is None:
                self.away_since = now
                logger.warning("the database is away (%s); training continues", first_line(error))
            if now - self.away_since > self.limit_s:
                raise OutageError(
                    f"the database has been away for {self.limit_s:.0f} s ({first_line(error)}), which is the limit. "
                    "Bring it back and launch again: nothing stored is lost"
                ) from None
        else:
            self.away_since = None


def _prepare_worker(
    experiment: str, placement: Placement, environment: dict[str, str], *, number: int, outage_limit_s: float
) -> _Worker:
    folder = log_folder(experiment)
    make_folder(folder)
    # -P: without it, a module in the current folder could replace ours.
    command = [sys.executable, "-P", "-m", "acuity", "worker", experiment, "--device", placement.device]
    command += ["--workers", str(placement.sharing), "--threads", str(placement.threads)]
    return _Worker(
        command=command,
        log=folder / f"worker-{os.getpid()}-{number}.log",
        environment=os.environ | placement.environment | environment,
        restarts=RestartPolicy(outage_limit_s),
        cores=placement.cores,
    )


def _restart_crashed(workers: list[_Worker]) -> bool:
    """Restart the workers that crashed; returns whether any worker runs.

    Once every worker is given up: OutageError where all lacked the database, UsageError otherwise.
    """
    now = time.monotonic()
    for worker in workers:
        if worker.given_up is not None:
            continue
        if worker.process is None and now >= worker.not_before:
            worker.start()
        status = worker.exit_status()
        if status is None:
            continue
        match worker.restarts.next_step(status, began=worker.began, now=now):
            case NextStep.FINISH:
                pass
            case NextStep.RESTART:
                logger.warning("a worker crashed (exit status %d) and is restarted; log: %s", status, worker.log)
                worker.start()
            case NextStep.RESTART_LATER:
                worker.process, worker.not_before = None, now + _OUTAGE_PAUSE_S
            case failure:
                logger.warning("a worker ended with an error: %s (log: %s)", last_line(worker.log), worker.log)
                worker.given_up = failure
    if workers and all(worker.given_up is not None for worker in workers):
        log = workers[0].log
        only_outages = all(worker.given_up is NextStep.GIVE_UP_OUTAGE for worker in workers)
        kind = OutageError if only_outages else UsageError
        raise kind(f"a worker ended with an error: {last_line(log)} (log: {log})")
    return any(worker.exit_status() is None for worker in workers)


def _end(workers: list[_Worker], say: Callable[[str], None]) -> None:
    """End the workers in time. A signal meanwhile (a second Ctrl-C) kills them and raises KeyboardInterrupt."""
    running = [worker.process for worker in workers if worker.process is not None and worker.process.poll() is None]
    if not running:
        return
    try:
        for process in running:
            process.send_signal(signal.SIGTERM)
        hand = "hands its trial" if len(running) == 1 else "hand their trials"
        say(
            f"Stopping: {counted(len(running), 'worker')} {hand} back, at most {_EXIT_S:.0f} s. "
            "Ctrl-C again ends them now."
        )
        deadline = time.monotonic() + _EXIT_S
        for process in running:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("a worker (process %d) did not end within %.0f s and is killed", process.pid, _EXIT_S)
                process.kill()
                process.wait()
    except KeyboardInterrupt:
        killed = [process for process in running if process.poll() is None]
        for process in killed:
            process.kill()
        for process in killed:
            process.wait()
        say(
            f"{counted(len(killed), 'worker')} ended at once. Their trials continue from their last epoch when "
            "workers run again."
        )
        raise
