"""`acuity stop`: end what this user has started of an experiment, launches on this host and jobs on its Slurm."""

from dataclasses import dataclass

from study.errors import UsageError
from study.launches import find_launches, stop_launches
from study.slurm_queue import cancel_jobs


@dataclass(frozen=True)
class Stopped:
    """What has ended; its workers have handed their trials back."""

    launches: int
    jobs: list[str]
    unknown: str | None
    """Why Slurm could not be asked, if so."""


def stop_experiment(name: str, *, storage_url: str | None) -> Stopped:
    """End them all and wait until they have; storage_url: None for every storage's. UsageError where there is none."""
    launches = stop_launches(name, storage_url=storage_url) if find_launches(name, storage_url=storage_url) else 0
    try:
        jobs = cancel_jobs(name, storage_url=storage_url)
    except UsageError as error:
        if not launches:
            raise
        return Stopped(launches, [], unknown=str(error))
    if not launches and not jobs:
        stop_launches(name, storage_url=storage_url)  # says that there is none
    return Stopped(launches, jobs, unknown=None)
