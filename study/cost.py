"""Forecast of the time that the remaining trials need, from the complete trials."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from study.config_schema import Experiment
from study.units import format_duration

if TYPE_CHECKING:
    from storage.database import Database

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
    from study.progress import read_progress  # imports optuna, which the printing of a forecast does not need

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
