"""The Slurm jobs of an experiment, found by their name in the queue: what a host remembers may be long out of date."""

import os
import shutil
import subprocess
import time

from storage.url import parse_url
from study.errors import UsageError
from study.slurm import job_name, storage_mark

_END_S = 60.0
_LOOK_EVERY_S = 1.0


def find_jobs(experiment: str, *, storage_url: str | None) -> list[str]:
    """Ids of the job arrays of an experiment that this user has queued or running; storage_url: None for every one's.

    None where there is no Slurm.
    """
    if shutil.which("squeue") is None:
        return []
    try:
        rows = _ask(
            "squeue", "--noheader", "--user", str(os.getuid()), "--name", job_name(experiment), "--format", "%F|%k"
        ).split()
    except _NoClusterError:
        return []
    mark = storage_mark(parse_url(storage_url)) if storage_url else None
    return sorted({job for job, _, found in (row.partition("|") for row in rows) if mark in (None, found)}, key=int)


def cancel_jobs(experiment: str, *, storage_url: str | None) -> list[str]:
    """Cancel them and wait until their workers have handed their trials back; returns their ids."""
    jobs = find_jobs(experiment, storage_url=storage_url)
    if not jobs:
        return []
    _ask("scancel", *jobs)
    deadline = time.monotonic() + _END_S
    while set(jobs) & set(find_jobs(experiment, storage_url=storage_url)):
        if time.monotonic() > deadline:
            raise UsageError(
                f"Slurm has not ended the jobs {', '.join(jobs)} in {_END_S:.0f} s: `squeue --job {','.join(jobs)}` "
                "shows why; their trials are taken up again all the same"
            )
        time.sleep(_LOOK_EVERY_S)
    return jobs


class _NoClusterError(Exception):
    """Slurm's commands are installed, and no cluster is configured."""


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "configuration source" in done.stderr:
        raise _NoClusterError
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()).removeprefix(f"{command[0]}: error: ")
        raise UsageError(f"{command[0]} failed ({reason}). Is this a login node, and is Slurm up (`scontrol ping`)?")
    return done.stdout
