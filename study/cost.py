"""What the rest of a search costs, from the trials that have been timed."""

from dataclasses import dataclass

from sqlalchemy import text

from storage.database import Database
from study.experiment import Experiment
from study.progress import read_progress

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
    """Trials that remain, and the hours that one worker would need for them."""

    trials: int
    seconds_by_resolution: dict[int, float]
    """Mean of a complete trial, px -> s; only of resolutions that have been timed."""
    worker_hours: float | None
    """None until every resolution has been timed. An upper bound: pruned trials end earlier."""


def predict_cost(database: Database, experiment: Experiment) -> Cost:
    """Count what is missing of the budgets, and time it as if each resolution were tried equally often."""
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
