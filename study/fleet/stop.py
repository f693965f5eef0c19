"""`acuity stop`: end this user's launches of an experiment on this host, and its jobs on Slurm."""

import platform
from dataclasses import dataclass

from acuity.study.errors import UsageError
from acuity.study.fleet.launches import stop_launches
from acuity.study.fleet.slurm import cancel_jobs


@dataclass(frozen=True)
class Stopped:
    """The launches and jobs that have ended."""

    launches: int
    jobs: list[str]
    unknown: str | None
    """Why Slurm did not answer; None where it did."""


def stop_experiment(name: str, *, storage_url: str | None) -> Stopped:
    """End the launches and jobs and wait for their end; UsageError where there are none.

    storage_url: only those of this storage; None for those of all storages.
    """
    launches = stop_launches(name, storage_url=storage_url)
    try:
        jobs = cancel_jobs(name, storage_url=storage_url)
    except UsageError as error:
        if not launches:
            raise
        return Stopped(launches, [], unknown=str(error))
    if not launches and not jobs:
        raise UsageError(
            f"no launch of {name} runs on {platform.node()} as this user. Stop a worker that you started "
            "with `acuity worker` by Ctrl-C or SIGTERM"
        )
    return Stopped(launches, jobs, unknown=None)
