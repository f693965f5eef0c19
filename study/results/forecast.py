"""Forecast of the time and the disk space that an experiment's remaining trials need."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING

from sqlalchemy import text

from acuity.objectives.images.cache import cache_bytes
from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import ImageSet
from acuity.study.units import counted, format_bytes, format_duration

if TYPE_CHECKING:
    from acuity.storage.database import Database
    from acuity.study.results.status import ExperimentStatus

_NETWORK_BYTES_PER_PARAMETER = 4  # in float32
_CHECKPOINT_BYTES_PER_PARAMETER = 12  # the parameter and the two moments of AdamW, in float32


@dataclass(frozen=True)
class CostForecast:
    """Number of remaining trials, and the time that one worker needs for them."""

    trials: int
    seconds_by_resolution: dict[int, float]
    """Mean duration of the finished trials, px -> s. A resolution without a finished trial is absent."""
    worker_hours: float | None
    """None if nothing is known about the duration of a trial."""
    rough: bool
    """Whether a resolution has no finished trial, so that its duration is an estimate."""

    def line(self) -> str:
        """The number of remaining trials and their time, as the end of a sentence."""
        if self.trials == 0:
            return "every label has its trials."
        to_run = f"{counted(self.trials, 'trial')} to run"
        if self.worker_hours is None:
            return f"{to_run}; the hours are known once a trial has run."
        return f"{to_run}, {_about(3600 * self.worker_hours, rough=self.rough)} of one worker's time."


@dataclass(frozen=True)
class DiskForecast:
    """Upper bound of an experiment's disk space, in bytes."""

    arrays: int
    checkpoints: int
    free: int
    """Free space in the folder of the arrays."""

    def line(self) -> str:
        """The forecast in one line."""
        arrays, checkpoints, free = map(format_bytes, (self.arrays, self.checkpoints, self.free))
        return f"disk: {arrays} of decoded images, at most {checkpoints} of checkpoints; {free} free"


def forecast_cost(
    database: "Database | None", experiment: Experiment, rough: Callable[[], Mapping[int, float]] = dict
) -> CostForecast:
    """Count the missing trials of each label and forecast their time.

    database: None before there is one. rough: returns seconds of a trial by resolution
    (pace.rough_trial_seconds); it is called where a resolution has no finished trial.
    """
    missing, timed = len(experiment.labels) * experiment.search.trials, {}
    if database is not None:
        from acuity.study.registry.progress import read_progress  # imports optuna, which `prepare` does not need

        finished = {entry.label: entry.finished for entry in read_progress(database, experiment)}
        missing = sum(max(0, experiment.search.trials - finished.get(label, 0)) for label in experiment.labels)
        timed = read_trial_seconds(database, experiment)
    known = set(experiment.search.resolutions) <= set(timed)
    left = estimate_seconds(
        missing, experiment.search.resolutions, timed=timed, rough={} if known or not missing else rough(), workers=1
    )
    return CostForecast(
        trials=missing,
        seconds_by_resolution=timed,
        worker_hours=None if left is None else left / 3600,
        rough=not known,
    )


def estimate_seconds(
    trials: float,
    resolutions: Sequence[int],
    *,
    timed: Mapping[int, float],
    rough: Mapping[int, float],
    workers: int,
) -> float | None:
    """Time in which this number of workers runs this number of trials. The only estimate of time left.

    timed, rough: seconds of a trial by resolution, from finished trials and from an estimate. A resolution that is not
    timed has its rough duration, corrected by how much the timed trials took longer. Without one it has the duration of
    the nearest timed resolution, in proportion to the pixels. All resolutions are assumed to be equally frequent. None
    where nothing is known.
    """
    if trials <= 0:
        return 0.0
    both = [(timed[each], rough[each]) for each in timed if each in rough]
    correction = sum(seconds for seconds, _ in both) / sum(seconds for _, seconds in both) if both else 1.0

    def seconds_at(resolution: int) -> float | None:
        if resolution in timed:
            return timed[resolution]
        if resolution in rough:
            return correction * rough[resolution]
        known = timed or rough
        if not known:
            return None
        nearest = min(known, key=lambda other: (abs(log2(other / resolution)), other))
        return known[nearest] * (resolution / nearest) ** 2

    durations = [seconds for seconds in map(seconds_at, resolutions) if seconds is not None]
    return trials * sum(durations) / len(durations) / max(1, workers) if durations else None


def time_left(
    status: "ExperimentStatus", timed: Mapping[int, float], *, rough: Mapping[int, float], workers: int
) -> str:
    """The time left of a running experiment, in words: "about 12 min", "estimating", "done".

    timed: from `read_trial_seconds`. rough: as for `estimate_seconds`. Running trials count in part, and those with a
    finished epoch tell the duration of a trial at a resolution that no finished trial has.
    """
    if not status.remaining:
        return "done"
    epochs, resolutions = status.experiment.training.epochs, status.experiment.search.resolutions
    begun: dict[int, list[float]] = {}
    for trial in status.running:
        if trial.resolution is not None and trial.epoch and trial.elapsed_s:
            begun.setdefault(trial.resolution, []).append(trial.elapsed_s * epochs / trial.epoch)
    observed = {resolution: sum(seconds) / len(seconds) for resolution, seconds in begun.items()}
    trials = status.remaining - sum(min(1.0, trial.epoch / epochs) for trial in status.running)
    seconds = estimate_seconds(trials, resolutions, timed=observed | dict(timed), rough=rough, workers=workers)
    if seconds is None:
        return "estimating"
    return _about(seconds, rough=not set(resolutions) <= set(timed))


def _about(seconds: float, *, rough: bool) -> str:
    return f"about {format_duration(seconds)}{' (rough)' if rough else ''}"


def read_trial_seconds(database: "Database", experiment: Experiment) -> dict[int, float]:
    """Mean duration (s) of the finished trials of the search at each resolution (px) that has one.

    Pruned trials count, since the remaining trials are pruned as often.
    """
    with database.engine.connect() as connection:
        rows = connection.execute(_SECONDS, {"name": experiment.name}).all()
    return {row.resolution: float(row.seconds) for row in rows}


_SECONDS = text(
    """
    select resolution, avg(seconds) as seconds
    from acuity.all_trials
    where experiment = :name and not confirm and state in ('COMPLETE', 'PRUNED') and seconds is not null
    group by resolution
    """
)


def forecast_disk(experiment: Experiment, image_set: ImageSet, *, workers: int) -> DiskForecast:
    """Add the decoded arrays, one network per label and resolution, and one checkpoint per worker."""
    from acuity.objectives.training.network import count_parameters  # imports torch, which `prepare` does not need

    training, search = experiment.training, experiment.search
    side = training.network_input or max(search.resolutions)
    largest = max(count_parameters(architecture, input_size=side) for architecture in search.architectures)
    networks = len(experiment.labels) * len(search.resolutions)
    per_parameter = networks * _NETWORK_BYTES_PER_PARAMETER + workers * _CHECKPOINT_BYTES_PER_PARAMETER
    return DiskForecast(
        arrays=cache_bytes(image_set.index, search.resolutions),
        checkpoints=largest * per_parameter,
        free=shutil.disk_usage(image_set.cache.folder).free,
    )
