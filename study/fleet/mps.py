"""NVIDIA MPS for workers that share a GPU: their kernels run at the same time, not in time slices.

A daemon serves the workers of one launch, or of one Slurm job on one node. The names and rules here are those of
NVIDIA's documentation of MPS (docs.nvidia.com/deploy/mps).
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from acuity.storage.embedded.keeper import die_with_parent
from acuity.study.fleet.placement import Placement

logger = logging.getLogger(__name__)
_CONTROL = "nvidia-cuda-mps-control"
_PIPES, _LOGS, _VISIBLE = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"
_START_S = 15.0
_QUIT_S = 10.0
_POLL_S = 0.1
_READY, _USERS = "ready", "users.lock"
_PRINT_UUIDS = "import torch as t; print(*(t.cuda.get_device_properties(n).uuid for n in range(t.cuda.device_count())))"


@contextmanager
def shared_gpus(placements: list[Placement]) -> Iterator[list[Placement]]:
    """Run an MPS daemon during the block if workers share a GPU; yields the placements with what its clients need.

    The placements are unchanged where no worker shares a GPU, or where MPS is missing or does not start, with a warning
    in the log.
    """
    names = {place.environment[_VISIBLE] for place in placements if place.sharing > 1 and _VISIBLE in place.environment}
    if not names:
        yield placements
        return
    sharing = max(place.sharing for place in placements)
    with tempfile.TemporaryDirectory(prefix="acuity-mps-") as folder:  # in /tmp: a socket's path must be short
        has_mps = os.environ.get(_PIPES) or shutil.which(_CONTROL)
        uuids = _find_uuids(sorted(names)) if has_mps else {}
        with _daemon(Path(folder), uuids.values(), sharing=sharing) as environment:
            if environment is None:
                yield placements
            else:
                yield _as_clients(placements, uuids, environment)


@contextmanager
def shared_gpu_of_job(sharing: int) -> Iterator[dict[str, str]]:
    """The same for one of several workers of a Slurm job on this node; yields the variables of the worker.

    sharing: number of the job's workers on the GPU. The first of them runs the daemon, and ends it after the others.
    """
    if sharing < 2:
        yield {}
        return
    if os.environ.get(_PIPES):
        yield _client_environment(Path(os.environ[_PIPES]), sharing=sharing)
        return
    folder = Path(tempfile.gettempdir(), f"acuity-mps-{_job_name()}")
    if os.environ.get("SLURM_LOCALID", "0") != "0":
        yield _join(folder, sharing)
        return
    if not _make_private(folder):
        logger.warning("%s belongs to another user; %s", folder, _slices(sharing))
        yield {}
        return
    try:
        gpus = os.environ.get(_VISIBLE, "").split(",")
        with _daemon(folder, [gpu for gpu in gpus if gpu], sharing=sharing) as environment:
            (folder / _READY).write_text("" if environment is None else "MPS")
            yield environment or {}
            with (folder / _USERS).open("w") as users:
                fcntl.flock(users, fcntl.LOCK_EX)  # after the job's other workers
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _job_name() -> str:
    """The name of this run of this job; Slurm gives a requeued job its old id and the next restart count."""
    parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return "-".join([str(os.getuid()), *(os.environ.get(part, "0") for part in parts)])


def _make_private(folder: Path) -> bool:
    """Make the folder for this user alone; whether it is this user's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _join(folder: Path, sharing: int) -> dict[str, str]:
    """Wait for the daemon of the job's first worker, and hold its lock until this process ends."""
    deadline = time.monotonic() + 2 * _START_S
    lock = None
    while time.monotonic() < deadline:
        if lock is None and folder.is_dir() and folder.lstat().st_uid == os.geteuid():
            with contextlib.suppress(FileNotFoundError):  # the first worker is making or removing the folder
                lock = os.open(folder / _USERS, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(lock, fcntl.LOCK_SH)  # the file remains open, so the lock is held
        if lock is not None and (folder / _READY).exists():
            return _client_environment(folder, sharing=sharing) if (folder / _READY).read_text() else {}
        time.sleep(_POLL_S)
    logger.warning("the first worker of this job has started no MPS; %s", _slices(sharing))
    return {}


def _slices(sharing: int) -> str:
    return (
        f"{sharing} workers on a GPU run in time slices: one computes at a time, so together they gain only the time "
        "in which one of them prepares images or writes"
    )


@contextmanager
def _daemon(folder: Path, gpus: Iterable[str], *, sharing: int) -> Iterator[dict[str, str] | None]:
    """A daemon for these GPUs with its pipes in the folder; yields the variables of its clients.

    Yields None, with a warning in the log, where MPS is missing or does not start. A daemon that the user has started
    is used and left alone.
    """
    if os.environ.get(_PIPES):
        yield _client_environment(Path(os.environ[_PIPES]), sharing=sharing)
        return
    if shutil.which(_CONTROL) is None:
        logger.warning("%s is not on the PATH; %s", _CONTROL, _slices(sharing))
        yield None
        return
    environment = os.environ | {_PIPES: str(folder), _LOGS: str(folder), _VISIBLE: ",".join(gpus)}
    log = folder / "daemon.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [_CONTROL, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,  # Ctrl-C must not reach it before the workers have ended
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
    try:
        if _answers(process, environment):
            logger.info("MPS serves %d workers on a GPU (process %d)", sharing, process.pid)
            yield _client_environment(folder, sharing=sharing)
        else:
            reason = " ".join(log.read_text(errors="replace").split())[-200:] or "no message"
            logger.warning("%s did not start (%s); %s", _CONTROL, reason, _slices(sharing))
            yield None
    finally:
        _quit(process, environment)


def _answers(process: "subprocess.Popen[bytes]", environment: Mapping[str, str]) -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        if _ask("get_default_active_thread_percentage", environment):
            return True
        time.sleep(_POLL_S)
    return False


def _quit(process: "subprocess.Popen[bytes]", environment: Mapping[str, str]) -> None:
    if process.poll() is None:
        _ask(f"quit -t {_QUIT_S:.0f}", environment)
    for end in (process.terminate, process.kill):
        try:
            process.wait(timeout=_QUIT_S)
        except subprocess.TimeoutExpired:
            end()
    process.wait()


def _ask(command: str, environment: Mapping[str, str]) -> bool:
    """Give the daemon a command; whether it took it."""
    try:
        done = subprocess.run(
            [_CONTROL],
            input=f"{command}\n",
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * _QUIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _client_environment(folder: Path, *, sharing: int) -> dict[str, str]:
    """Variables of one of the clients: the pipes, and its share of the GPU's multiprocessors.

    NVIDIA recommends 100 % divided by half the number of clients, so that a client can use what others leave idle. The
    memory of a client is limited by PyTorch's allocator, as without MPS.
    """
    percentage = min(100, round(200 / sharing))
    return {_PIPES: str(folder), _LOGS: str(folder), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percentage)}


def _as_clients(placements: list[Placement], uuids: Mapping[str, str], client: dict[str, str]) -> list[Placement]:
    """The placements as clients of MPS, each with an equal share of the cores to itself if there are enough.

    A GPU is named by its UUID: the daemon numbers the GPUs that it serves from 0.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // len(placements)
    return [
        replace(
            place,
            environment=place.environment | client | {_VISIBLE: uuids[place.environment[_VISIBLE]]},
            cores=tuple(cores[number * share : (number + 1) * share]),
        )
        for number, place in enumerate(placements)
    ]


def _find_uuids(names: list[str]) -> dict[str, str]:
    """UUIDs of GPUs that are named as in CUDA_VISIBLE_DEVICES. A child asks: this process must not open the GPUs."""
    environment = os.environ | {_VISIBLE: ",".join(names)}
    command = [sys.executable, "-P", "-c", _PRINT_UUIDS]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    uuids = [uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}" for uuid in printed.split()]
    return dict(zip(names, uuids, strict=True))
