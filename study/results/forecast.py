"""Forecast of the time and the disk space that an experiment's remaining trials need."""

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from acuity.objectives.images.cache import cache_bytes
from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import ImageSet
from acuity.study.units import format_bytes, format_duration

if TYPE_CHECKING:
    from acuity.storage.database import Database

_NETWORK_BYTES_PER_PARAMETER = 4  # in float32
_CHECKPOINT_BYTES_PER_PARAMETER = 12  # the parameter and the two moments of AdamW, in float32


@dataclass(frozen=True)
class CostForecast:
    """Number of remaining trials, and the time that one worker needs for them."""

    trials: int
    seconds_by_resolution: dict[int, float]
    """Mean duration of the complete trials, px -> s. A resolution without a complete trial is absent."""
    worker_hours: float | None
    """None until every resolution has a complete trial. An upper bound, because pruned trials are shorter."""


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


def forecast_cost(database: "Database", experiment: Experiment) -> CostForecast:
    """Count the missing trials of each label. All resolutions are assumed to be equally frequent among them."""
    from acuity.study.registry.progress import read_progress  # imports optuna, which `prepare` does not need

    budget = experiment.search.trials
    finished = {entry.label: entry.finished for entry in read_progress(database, experiment)}
    missing = sum(max(0, budget - finished.get(label, 0)) for label in experiment.labels)
    with database.engine.connect() as connection:
        rows = connection.execute(_SECONDS, {"name": experiment.name}).all()
    seconds = {row.resolution: float(row.seconds) for row in rows}
    timed = [seconds[resolution] for resolution in experiment.search.resolutions if resolution in seconds]
    complete = len(timed) == len(experiment.search.resolutions)
    hours = missing * sum(timed) / len(timed) / 3600 if complete else None
    return CostForecast(trials=missing, seconds_by_resolution=seconds, worker_hours=hours)


_SECONDS = text(
    """
    select resolution, avg(seconds) as seconds
    from acuity.all_trials
    where experiment = :name and not confirm and state = 'COMPLETE' and seconds is not null
    group by resolution
    """
)


def cost_line(cost: CostForecast | None) -> str:
    """The number of remaining trials and their time, as the end of a sentence."""
    if cost is None:
        return "the hours are known once a trial at each resolution has run."
    if cost.trials == 0:
        return "every label has its trials."
    if cost.worker_hours is None:
        return f"{cost.trials:,} trials to run; the hours are known once a trial at each resolution has run."
    return f"{cost.trials:,} trials to run, at most {format_duration(3600 * cost.worker_hours)} of one worker's time."


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
