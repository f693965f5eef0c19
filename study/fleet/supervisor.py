"""Start workers on this host, watch them, restart one that crashes, and end them all together."""

import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from acuity.storage.connection import OUTAGES, first_line
from acuity.storage.database import Database
from acuity.storage.embedded.keeper import die_with_parent
from acuity.storage.errors import OutageError
from acuity.study.errors import UsageError
from acuity.study.fleet.launches import last_words, log_folder, make_folder, registered_launch
from acuity.study.fleet.restarts import NextStep, RestartPolicy
from acuity.study.registry.record import Registered

logger = logging.getLogger(__name__)
_EXIT_S = 12.0
_OUTAGE_PAUSE_S = 5.0
_REFRESH_S = 0.5


@dataclass(frozen=True)
class FleetOptions:
    """The workers that a command starts, as its options name them."""

    workers: int | None = None
    """How many: by default one per GPU, else two. With 0 no worker is started."""
    per_gpu: int | None = None
    """How many share each GPU, in place of workers; by default 1."""
    device: str = "auto"
    cluster: str | None = None
    """"slurm" submits the workers as jobs; None starts them on this host."""


@dataclass(frozen=True)
class Place:
    """Where one worker runs: its device, how many share that, and its share of the host's cores."""

    device: str
    sharing: int
    threads: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Member:
    """One worker process of the fleet, restarted under the same number."""

    command: list[str]
    log: Path
    environment: dict[str, str]
    restarts: RestartPolicy
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    not_before: float = 0.0
    given_up: NextStep | None = None

    def start(self) -> None:
        self.began = time.monotonic()
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends its workers.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )

    def ended(self) -> int | None:
        return None if self.process is None else self.process.poll()


def place_workers(options: FleetOptions) -> list[Place]:
    """Spread the workers of this host over its GPUs, or over its cores where it has no GPU.

    Empty where the workers run on a cluster or somebody else starts them.
    """
    device, workers, per_gpu = options.device, options.workers, options.per_gpu
    if options.cluster is not None or workers == 0:
        return []
    cores = len(os.sched_getaffinity(0))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device} cannot be used here: PyTorch sees no GPU; use --device cpu or another host")
    gpus = _visible_gpus(device)
    if not gpus:
        if per_gpu is not None:
            raise UsageError(f"--workers-per-gpu {per_gpu}: there is no GPU here; say --workers for CPU workers")
        count = workers or min(2, cores)
        return [Place(device=device, sharing=count, threads=max(1, cores // count))] * count
    count = workers or len(gpus) * (per_gpu or 1)
    sharing, threads = math.ceil(count / len(gpus)), max(1, cores // count)
    return [
        Place("cuda", sharing, threads, environment={"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]})
        for number in range(count)
    ]


def run_fleet(
    database: Database, registered: Registered, *, places: list[Place], refresh: Callable[[int], None]
) -> None:
    """Run workers on this host until nothing is left to do; refresh(workers alive) is called twice a second.

    An outage of the database is sat out, as the workers do. Ctrl-C and SIGTERM end the workers first: each hands its
    trial back. UsageError where every worker has ended with an error or keeps crashing, OutageError where the
    experiment's patience has ended.
    """
    name = registered.experiment.name
    with _sigterm_as_interrupt(), registered_launch(name, storage=database.url):
        patience = _Patience(60 * registered.experiment.workers.storage_patience_min)
        members = [
            _member(name, place, database.environment(), number=number, outage_limit_s=patience.limit_s)
            for number, place in enumerate(places)
        ]
        try:
            for member in members:
                member.start()
            while _alive(members):
                with patience.through_outages():
                    refresh(sum(member.ended() is None for member in members))
                time.sleep(_REFRESH_S)
        finally:
            _end(members)
        refresh(0)


@dataclass
class _Patience:
    """With a database that is away: the workers' own, so that launcher and workers give up together."""

    limit_s: float
    away_since: float | None = None

    @contextmanager
    def through_outages(self) -> Iterator[None]:
        try:
            yield
        except OUTAGES as error:
            now = time.monotonic()
            if self.away_since is None:
                self.away_since = now
                logger.warning("the database is away (%s); training goes on", first_line(error))
            if now - self.away_since > self.limit_s:
                raise OutageError(
                    f"the database has been away for {self.limit_s:.0f} s ({first_line(error)}), which is the limit. "
                    "Bring it back and launch again: nothing stored is lost"
                ) from None
        else:
            self.away_since = None


def _visible_gpus(device: str) -> list[str]:
    """The GPUs that "auto", "cuda" or "cuda:1" means, as CUDA_VISIBLE_DEVICES names them."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _named_gpus(named) if named else [str(number) for number in range(torch.cuda.device_count())]
    _, separator, number = device.partition(":")
    if not separator:
        return gpus
    if not number.isdecimal() or int(number) >= len(gpus):
        raise UsageError(f"device {device} cannot be used here: there are {len(gpus)}, from cuda:0")
    return [gpus[int(number)]]


def _named_gpus(named: str) -> list[str]:
    """As CUDA reads it: up to the first entry that is none."""
    return list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), map(str.strip, named.split(","))))


def _alive(members: list[_Member]) -> bool:
    """Restart the workers that crashed; returns whether any worker runs.

    Raises once every worker has been given up: OutageError where all lacked the database, UsageError otherwise.
    """
    now = time.monotonic()
    for member in members:
        if member.given_up is not None:
            continue
        if member.process is None and now >= member.not_before:
            member.start()
        code = member.ended()
        if code is None:
            continue
        match member.restarts.next_step(code, began=member.began, now=now):
            case NextStep.FINISH:
                pass
            case NextStep.RESTART:
                logger.warning("a worker crashed (exit status %d) and is started again; log: %s", code, member.log)
                member.start()
            case NextStep.RESTART_LATER:
                member.process, member.not_before = None, now + _OUTAGE_PAUSE_S
            case failure:
                logger.warning("a worker ended with an error: %s (log: %s)", last_words(member.log), member.log)
                member.given_up = failure
    if members and all(member.given_up is not None for member in members):
        log = members[0].log
        only_outages = all(member.given_up is NextStep.GIVE_UP_OUTAGE for member in members)
        kind = OutageError if only_outages else UsageError
        raise kind(f"a worker ended with an error: {last_words(log)} (log: {log})")
    return any(member.ended() is None for member in members)


def _member(
    experiment: str, place: Place, environment: dict[str, str], *, number: int, outage_limit_s: float
) -> _Member:
    folder = log_folder(experiment)
    make_folder(folder)
    # -P: a study.py in the current folder would run in place of ours.
    command = [sys.executable, "-P", "-m", "acuity", "worker", experiment, "--device", place.device]
    command += ["--workers", str(place.sharing), "--threads", str(place.threads)]
    return _Member(
        command=command,
        log=folder / f"worker-{os.getpid()}-{number}.log",
        environment=os.environ | place.environment | environment,
        restarts=RestartPolicy(outage_limit_s),
    )


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
    """SIGHUP, too, unless it is ignored (nohup): a terminal that is closed must not leave workers to themselves."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    told = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, interrupt) for number in told}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
