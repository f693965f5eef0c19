"""Slurm job arrays of workers: submit, find and cancel them. Slurm never stores a password."""

import contextlib
import hashlib
import io
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from rich.console import Console
from sqlalchemy import URL, make_url
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from acuity.storage.url import PASSWORD_FILE, is_of_this_host, masked, parse_url
from acuity.study.config.schema import Cluster, Experiment
from acuity.study.errors import UsageError
from acuity.study.fleet.logs import make_folder
from acuity.study.units import counted

_NOTICE_S = 30
"""How long before its time limit a job gets SIGTERM. A worker needs ten seconds. Slurm may be a minute early."""
_END_S = 60.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Submission:
    """A job array that Slurm has accepted."""

    job: str
    workers: int
    jobs: int
    """Number of jobs of the array."""
    logs: Path


def check_slurm(storage_url: str | None, *, warn: Callable[[str], None]) -> None:
    """UsageError where this host cannot submit jobs, or the jobs cannot reach the storage without a secret.

    warn: called with a warning where only jobs on this host reach the storage. A cluster of one node needs no more.
    """
    missing = [program for program in ("sbatch", "srun", "scontrol") if shutil.which(program) is None]
    if missing:
        raise UsageError(
            f"--cluster slurm: no {', '.join(missing)} on the PATH of this host. Run it on a login node of the "
            "cluster, or leave --cluster out to use this host alone"
        )
    named = storage_url or os.environ.get("ACUITY_STORAGE")
    if not named:
        raise UsageError(
            "--cluster slurm: the embedded Postgres serves this host alone. Name one that every node reaches: "
            "--storage postgresql://user@host/database, or ACUITY_STORAGE"
        )
    _refuse_passwords(named)
    url = _without_passwords(parse_url(named))
    if is_of_this_host(url):
        reachable = url.set(host=platform.node()).difference_update_query(["host", "hostaddr"])
        warn(
            f"storage {masked(url)} names the host of each worker, so jobs on other nodes cannot reach it. "
            "Unless this host is the whole cluster, stop and name the storage by its host, for example "
            f"--storage {masked(reachable)}; Postgres has to listen on that host"
        )


def submit_workers(
    experiment: Experiment, *, storage: URL, workers: int, device: str, per_gpu: int | None = None
) -> Submission:
    """Submit a job array of workers of a registered experiment; returns once Slurm has accepted it.

    device: "auto" means CUDA where [cluster] asks for GPUs, else the CPU. per_gpu: number of workers of each job, which
    share its GPU; by default 1. UsageError where it does not divide the number of workers, or the jobs have no GPU.
    """
    cluster, sharing = experiment.cluster, per_gpu or 1
    if workers % sharing:
        raise UsageError(
            f"--workers {workers} is not a multiple of --workers-per-gpu {sharing}: each job has {sharing} workers"
        )
    if per_gpu and not cluster.gpus_per_worker:
        raise UsageError(f"--workers-per-gpu {per_gpu}: cluster.gpus_per_worker is 0, so the jobs have no GPU")
    folder = _make_log_folder(experiment)
    executor = _CommandExecutor(folder)
    executor.update_parameters(
        **_parameters(cluster, folder, sharing=sharing),
        job_name=_job_name(experiment.name),
        comment=_storage_mark(storage),
        array_parallelism=workers // sharing,
        setup=[*cluster.setup, *_exports(storage)],
    )
    repeated = io.StringIO()
    try:
        with contextlib.redirect_stderr(repeated):  # submitit also prints the errors that it raises
            command = _command(experiment, device=device, sharing=sharing)
            job = executor.submit_array_of_commands(command, count=workers // sharing)
    except (FailedJobError, FailedSubmissionError) as error:
        reason = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        raise UsageError(
            f"Slurm did not accept the workers of {experiment.name} ({reason}). See [cluster] in the experiment's "
            "file; `sinfo` and `sacctmgr show associations` list the partitions and accounts"
        ) from None
    return Submission(job=job, workers=workers, jobs=workers // sharing, logs=folder)


def print_submission(experiment: str, submission: Submission, console: Console) -> None:
    """Print the job, the commands that watch and stop it, and the folder of its logs."""
    job, workers = submission.job, submission.workers
    console.print(
        f"{experiment}: {counted(workers, 'worker')} submitted to Slurm as job {job} "
        f"({job}_0 to {job}_{submission.jobs - 1}), logs in {submission.logs}\n"
        f"`acuity status {experiment}` shows its trials, `squeue --job {job}` its place in the queue, "
        f"`acuity stop {experiment}` cancels it",
        soft_wrap=True,
    )


def find_jobs(experiment: str, *, storage_url: str | None) -> list[str]:
    """Ids of this user's job arrays of an experiment, queued or running; empty where there is no Slurm.

    storage_url: only the jobs of this storage; None for the jobs of all storages.
    """
    if shutil.which("squeue") is None:
        return []
    try:
        rows = _run(
            "squeue", "--noheader", "--user", str(os.getuid()), "--name", _job_name(experiment), "--format", "%F|%k"
        ).split()
    except _NoClusterError:
        return []
    mark = _storage_mark(parse_url(storage_url)) if storage_url else None
    return sorted({job for job, _, found in (row.partition("|") for row in rows) if mark in (None, found)}, key=int)


def cancel_jobs(experiment: str, *, storage_url: str | None) -> list[str]:
    """Cancel the job arrays of an experiment and wait until they have ended; returns their ids."""
    jobs = find_jobs(experiment, storage_url=storage_url)
    if not jobs:
        return []
    _run("scancel", *jobs)
    deadline = time.monotonic() + _END_S
    while set(jobs) & set(find_jobs(experiment, storage_url=storage_url)):
        if time.monotonic() > deadline:
            raise UsageError(
                f"Slurm has not ended the jobs {', '.join(jobs)} in {_END_S:.0f} s: `squeue --job {','.join(jobs)}` "
                "shows why. Other workers will take over their trials"
            )
        time.sleep(_POLL_S)
    return jobs


def _refuse_passwords(text: str) -> None:
    """UsageError where Slurm would keep a password, in a script or in the environment of a job."""
    url = parse_url(text)
    written = make_url(text.strip())
    if written.password is not None or any("password" in key.lower() for key in written.query):
        what = "the storage URL has a password"
        next_step = f"and name the storage {masked(_without_passwords(url))}"
    elif "PGPASSWORD" in os.environ:
        what, next_step = "PGPASSWORD is set", "and unset PGPASSWORD"
    else:
        return
    line = f"{url.host or '*'}:{url.port or '*'}:{url.database}:{url.username or '*'}:PASSWORD"
    raise UsageError(
        f"--cluster slurm: {what}, and Slurm keeps the script and the environment of a job. Put the line {line} into "
        "~/.pgpass in a home that the nodes share (chmod 600 ~/.pgpass), or the password alone into the file that "
        f"{PASSWORD_FILE} names, {next_step}"
    )


def _without_passwords(url: URL) -> URL:
    # A new URL, because URL.set(password=None) keeps the password.
    return URL.create(
        url.drivername,
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query={key: value for key, value in url.query.items() if "password" not in key.lower()},
    )


def _make_log_folder(experiment: Experiment) -> Path:
    """The folder for the scripts and logs of an experiment's jobs; UsageError where other users may enter it."""
    base = experiment.cluster.logs or Path(platformdirs.user_log_dir("acuity"))
    folder = base / experiment.name / "slurm"
    make_folder(folder.parent, named_by="cluster.logs")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UsageError(
            f"{folder} is open to other users. They could change the script that runs in your name: "
            f"chmod 700 {folder}, or name another folder in cluster.logs"
        )
    return folder


class _CommandExecutor(SlurmExecutor):
    """Submits a command with submitit's script.

    submitit's usual jobs are functions, pickled into the log folder. A command needs no pickle.
    """

    def submit_array_of_commands(self, command: str, *, count: int) -> str:
        self.parameters["map_count"] = count
        return str(self._submit_command(command).job_id)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # Slurm keeps the environment of sbatch: in the controller's state, on the nodes and, where a site configures
        # it, in the accounting. The URL of another storage may have a password. The job that runs this process has
        # variables that sbatch would apply to the new job.
        secret = {"ACUITY_STORAGE", "ACUITY_DASHBOARD_PASSWORD", "ACUITY_READER_PASSWORD"}
        removed = [
            name
            for name in os.environ
            if name in secret or (name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF")
        ]
        unset = [word for name in removed for word in ("-u", name)]
        return ["env", *unset, *super()._make_submission_command(submission_file_path)]


def _parameters(cluster: Cluster, folder: Path, *, sharing: int) -> dict[str, object]:
    """The resources of a job of so many workers, each a task, under submitit's names."""
    return {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.time_limit_min,
        "nodes": 1,
        "ntasks_per_node": sharing,
        "cpus_per_task": cluster.cpus_per_worker,
        "gpus_per_node": cluster.gpus_per_worker or None,
        "mem": None if cluster.memory_gib is None else f"{round(cluster.memory_gib * 1024) * sharing}M",
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default is "submitit", which a site that tracks these keys refuses
        # From Slurm 22.05 on, srun does not inherit this from sbatch.
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_worker}"],
        "additional_parameters": {
            **cluster.extra,
            "signal": f"TERM@{_NOTICE_S}",
            "requeue": True,
            "chdir": str(folder),  # python -m imports from the working folder first
        },
    }


def _job_name(experiment: str) -> str:
    """The name of an experiment's jobs, by which `squeue --name` finds them."""
    return f"acuity-{experiment}"


def _storage_mark(storage: URL) -> str:
    """The comment of a job: it distinguishes experiments of one name in two storages. All users can read it."""
    return f"acuity-{hashlib.sha256(masked(_without_passwords(storage)).encode()).hexdigest()[:12]}"


def _exports(storage: URL) -> list[str]:
    """Shell lines that export the storage without its password, and the files that hold the password."""
    values = {"ACUITY_STORAGE": _without_passwords(storage).render_as_string(hide_password=False)}
    for name in (PASSWORD_FILE, "PGPASSFILE"):
        if os.environ.get(name):
            values[name] = str(Path(os.environ[name]).absolute())
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def _command(experiment: Experiment, *, device: str, sharing: int) -> str:
    cluster = experiment.cluster
    if device == "auto":
        device = "cuda" if cluster.gpus_per_worker else "cpu"
    job = ["--requeues", str(cluster.max_requeues), "--patience-min", f"{experiment.workers.storage_patience_min:g}"]
    worker = ["worker", experiment.name, "--device", device, "--threads", str(cluster.cpus_per_worker)]
    if sharing > 1:
        job += ["--sharing", str(sharing)]
        worker += ["--workers", str(sharing)]
    return shlex.join([sys.executable, "-m", "acuity.study.fleet.slurm_job", *job, *worker])


class _NoClusterError(Exception):
    """Slurm's commands are installed, but no cluster is configured."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "configuration source" in done.stderr:
        raise _NoClusterError
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()).removeprefix(f"{command[0]}: error: ")
        raise UsageError(f"{command[0]} failed ({reason}). Is this a login node, and is Slurm up (`scontrol ping`)?")
    return done.stdout
