"""`--cluster slurm`: one job array of workers through submitit, and no password in anything that Slurm keeps."""

import contextlib
import hashlib
import io
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from rich.console import Console
from sqlalchemy import URL, make_url
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from storage.url import PASSWORD_FILE, is_of_this_host, masked, parse_url
from study.errors import UsageError
from study.experiment import Experiment
from study.launches import make_folder
from study.sections import Cluster

_NOTICE_S = 30
"""How long before its time limit a worker is told to stop. It needs ten; Slurm may tell it a minute earlier."""


@dataclass(frozen=True)
class Submission:
    """A job array that Slurm has accepted."""

    job: str
    workers: int
    logs: Path


def check_slurm(storage_url: str | None, *, warn: Callable[[str], None]) -> None:
    """UsageError where no worker could be submitted from here, or none could reach the storage without a secret.

    warn: told of a storage that only the jobs on this very host would reach, as those of a cluster of one node do.
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
            f"storage {masked(url)} means whichever host a worker runs on, so jobs on other nodes will not find it. "
            "Unless this host is the whole cluster, stop this and name the storage as the nodes know it, such as "
            f"--storage {masked(reachable)}; Postgres has to listen there"
        )


def submit_workers(experiment: Experiment, *, storage: URL, workers: int, device: str) -> Submission:
    """Submit a job array of workers of a registered experiment; returns as soon as Slurm has accepted it.

    device: "auto" is CUDA where [cluster] asks for GPUs, else the CPU.
    """
    cluster = experiment.cluster
    folder = make_log_folder(experiment)
    executor = _CommandExecutor(folder)
    executor.update_parameters(
        **_parameters(cluster, folder),
        job_name=job_name(experiment.name),
        comment=storage_mark(storage),
        array_parallelism=workers,
        setup=[*cluster.setup, *_exports(storage)],
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # submitit repeats there what it raises
            job = executor.submit_array_of_commands(_command(experiment, device=device), count=workers)
    except (FailedJobError, FailedSubmissionError) as error:
        reason = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        raise UsageError(
            f"Slurm did not accept the workers of {experiment.name} ({reason}). See [cluster] in the experiment's "
            "file; `sinfo` and `sacctmgr show associations` say what there is to ask for"
        ) from None
    return Submission(job=job, workers=workers, logs=folder)


def tell_submission(experiment: str, submission: Submission, console: Console) -> None:
    """Say what was submitted, how to watch it, how to stop it and where its logs are."""
    job, workers = submission.job, submission.workers
    console.print(
        f"{experiment}: {workers} worker{'s' if workers > 1 else ''} submitted to Slurm as job {job} "
        f"({job}_0 to {job}_{workers - 1}), logs in {submission.logs}\n"
        f"`acuity status {experiment}` shows its trials, `squeue --job {job}` its place in the queue, "
        f"`acuity stop {experiment}` cancels it",
        soft_wrap=True,
    )


def job_name(experiment: str) -> str:
    """The name of an experiment's jobs, by which `squeue --name` finds them."""
    return f"acuity-{experiment}"


def storage_mark(storage: URL) -> str:
    """What tells the jobs of two storages' experiments of one name apart; everybody can read it in squeue."""
    return f"acuity-{hashlib.sha256(masked(_without_passwords(storage)).encode()).hexdigest()[:12]}"


def make_log_folder(experiment: Experiment) -> Path:
    """The user's own folder for the scripts and logs of an experiment's jobs; UsageError where others may enter it."""
    base = experiment.cluster.logs or Path(platformdirs.user_log_dir("acuity"))
    folder = base / experiment.name / "slurm"
    make_folder(folder.parent, named_by="cluster.logs")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UsageError(
            f"{folder} is open to others, who could change the script that runs in your name: chmod 700 {folder}, or "
            "name another folder in cluster.logs"
        )
    return folder


class _CommandExecutor(SlurmExecutor):
    """submitit's script and submission around a command.

    submitit's own jobs are functions, pickled into the log folder for a node to unpickle; a command needs no pickle.
    """

    def submit_array_of_commands(self, command: str, *, count: int) -> str:
        self.parameters["map_count"] = count
        return str(self._submit_command(command).job_id)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # What sbatch finds in its environment Slurm keeps: in the controller's state, on the nodes and, where a site
        # says so, in the accounting. Another storage's URL may have a password, and a worker needs no other of ours;
        # variables of a job that this process itself runs in would be taken for the new one's.
        secret = {"ACUITY_STORAGE", "ACUITY_DASHBOARD_PASSWORD", "ACUITY_READER_PASSWORD"}
        left_out = [
            name
            for name in os.environ
            if name in secret or (name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF")
        ]
        unset = [word for name in left_out for word in ("-u", name)]
        return ["env", *unset, *super()._make_submission_command(submission_file_path)]


def _parameters(cluster: Cluster, folder: Path) -> dict[str, object]:
    """The resources of one worker, under submitit's names."""
    return {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.time_limit_min,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cluster.cpus_per_worker,
        "gpus_per_node": cluster.gpus_per_worker or None,
        "mem": None if cluster.memory_gib is None else f"{round(cluster.memory_gib * 1024)}M",
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default is its own name, which a site that tracks these refuses
        # From Slurm 22.05 on, srun does not take this over from sbatch.
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_worker}"],
        "additional_parameters": {
            **cluster.extra,
            "signal": f"TERM@{_NOTICE_S}",
            "requeue": True,
            "chdir": str(folder),  # not where this was typed: python -m would look for its modules there first
        },
    }


def _command(experiment: Experiment, *, device: str) -> str:
    cluster = experiment.cluster
    if device == "auto":
        device = "cuda" if cluster.gpus_per_worker else "cpu"
    job = ["--requeues", str(cluster.max_requeues), "--patience-min", f"{experiment.workers.storage_patience_min:g}"]
    worker = ["worker", experiment.name, "--device", device, "--threads", str(cluster.cpus_per_worker)]
    return shlex.join([sys.executable, "-m", "study.slurm_job", *job, *worker])


def _exports(storage: URL) -> list[str]:
    """Shell that tells a worker the storage, and where the password is read: never the password itself."""
    values = {"ACUITY_STORAGE": _without_passwords(storage).render_as_string(hide_password=False)}
    for name in (PASSWORD_FILE, "PGPASSFILE"):
        if os.environ.get(name):
            values[name] = str(Path(os.environ[name]).absolute())
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def _refuse_passwords(text: str) -> None:
    """UsageError for a password that Slurm would keep, in a script or with a job's environment."""
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
        f"~/.pgpass in a home that the nodes share (chmod 600 ~/.pgpass), or the password alone into the file that "
        f"{PASSWORD_FILE} names, {next_step}"
    )


def _without_passwords(url: URL) -> URL:
    # Made anew: URL.set(password=None) would leave the password as it is.
    return URL.create(
        url.drivername,
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query={key: value for key, value in url.query.items() if "password" not in key.lower()},
    )
