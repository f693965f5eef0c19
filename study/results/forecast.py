"""Forecast of the time and the disk space that the remaining trials need."""

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

_SECONDS = text(
    """
    select resolution, avg(seconds) as complete, count(*) as timed
    from acuity.trials
    where experiment = :name and not confirm and state = 'COMPLETE' and seconds is not null
    group by resolution
    """
)


@dataclass(frozen=True)
class Cost:
    """The remaining trials, and the hours that one worker needs for them."""

    trials: int
    seconds_by_resolution: dict[int, float]
    """Mean time of a complete trial, px -> s. A resolution without a complete trial is absent."""
    worker_hours: float | None
    """None until every resolution has a complete trial. An upper bound: pruned trials end earlier."""


def predict_cost(database: "Database", experiment: Experiment) -> Cost:
    """Count the trials that each label lacks, and assume that all resolutions are equally frequent among them."""
    from acuity.study.registry.progress import read_progress

    budget = experiment.search.trials
    done = {entry.label: entry.finished for entry in read_progress(database, experiment)}
    missing = sum(max(0, budget - done.get(label, 0)) for label in experiment.labels)
    with database.engine.connect() as connection:
        rows = connection.execute(_SECONDS, {"name": experiment.name}).all()
    seconds = {row.resolution: float(row.complete) for row in rows}
    timed = [seconds.get(resolution) for resolution in experiment.search.resolutions]
    known = [value for value in timed if value is not None]
    hours = missing * sum(known) / len(known) / 3600 if len(known) == len(timed) else None
    return Cost(trials=missing, seconds_by_resolution=seconds, worker_hours=hours)


def cost_line(cost: Cost | None) -> str:
    """The trials that remain and the time that they need, as the end of a sentence."""
    if cost is None:
        return "the hours are known once a trial at each resolution has run."
    if cost.trials == 0:
        return "every label has its trials."
    if cost.worker_hours is None:
        return f"{cost.trials:,} trials to run; the hours are known once a trial at each resolution has run."
    return f"{cost.trials:,} trials to run, at most {format_duration(3600 * cost.worker_hours)} of one worker's time."


_CHECKPOINT_BYTES_PER_PARAMETER = 12  # the network and AdamW's two moments, in float32


@dataclass(frozen=True)
class Disk:
    """Upper bound of an experiment's disk space, in bytes."""

    arrays: int
    checkpoints: int
    free: int
    """Free space in the arrays' folder."""

    def line(self) -> str:
        arrays, checkpoints, free = map(format_bytes, (self.arrays, self.checkpoints, self.free))
        return f"disk: {arrays} of decoded images, at most {checkpoints} of checkpoints; {free} free"


def predict_disk(experiment: Experiment, image_set: ImageSet, *, workers: int) -> Disk:
    """Add up the decoded arrays, one checkpoint per label and resolution, and one checkpoint per worker."""
    from acuity.objectives.training.network import count_parameters  # imports torch, which `prepare` does not need

    training, search = experiment.training, experiment.search
    side = training.network_input or max(search.resolutions)
    largest = max(count_parameters(architecture, input_size=side) for architecture in search.architectures)
    kept = len(experiment.labels) * len(search.resolutions) + workers
    return Disk(
        arrays=cache_bytes(image_set.index, search.resolutions),
        checkpoints=kept * largest * _CHECKPOINT_BYTES_PER_PARAMETER,
        free=shutil.disk_usage(image_set.cache.folder).free,
    )
