"""The best resolution per label, read from the database: what the search has found, with its uncertainty."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, text

from objectives.metrics import auc_interval
from storage.database import Database
from study.experiment import Experiment
from study.progress import Progress, read_progress
from study.register import recall


@dataclass(frozen=True)
class Best:
    """The configuration with the highest AUC of a label."""

    resolution: int
    architecture: str
    batch_size: int
    feasible_batch_size: int
    learning_rate: float
    auc: float
    auc_low: float
    auc_high: float
    split: str
    """Which patients the AUC is of: validation until the experiment is confirmed."""
    seeds: int
    """Confirmation seeds behind the AUC; 0 for a single trial of the search."""


@dataclass(frozen=True)
class AtResolution:
    """The best complete trial of a label at one resolution, and how many trials it was chosen from."""

    resolution: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    split: str
    complete: int
    pruned: int
    seeds: int


@dataclass(frozen=True)
class LabelAnswer:
    """What is known of one label."""

    label: str
    best: Best | None
    reference: None
    smallest_adequate: None
    by_resolution: tuple[AtResolution, ...]
    trials: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """What is known of an experiment."""

    experiment: str
    labels: tuple[LabelAnswer, ...]

    def to_json(self) -> dict[str, Any]:
        """The documented JSON of `acuity best --format json`."""
        table = asdict(self)
        return {"experiment": table["experiment"], "labels": list(table["labels"])}


_BEST_BY_RESOLUTION = text(
    """
    select distinct on (label, resolution) label, resolution, architecture, batch_size, feasible_batch_size,
        learning_rate, value as auc, auc_se
    from acuity.trials
    where experiment = :name and not confirm and state = 'COMPLETE'
    order by label, resolution, value desc, number
    """
)

_COUNTS = text(
    """
    select label, resolution, count(*) filter (where state = 'COMPLETE') as complete,
        count(*) filter (where state = 'PRUNED') as pruned
    from acuity.trials
    where experiment = :name and not confirm and state in ('COMPLETE', 'PRUNED')
    group by label, resolution
    """
)


def read_answer(database: Database, name: str) -> Answer:
    """Read the best configuration of each label and resolution; StorageError where there is no such experiment."""
    experiment = recall(database, name).experiment
    with database.engine.connect() as connection:
        best = connection.execute(_BEST_BY_RESOLUTION, {"name": name}).all()
        counts = connection.execute(_COUNTS, {"name": name}).all()
    best_at = {(row.label, row.resolution): row for row in best}
    counts_at = {(row.label, row.resolution): row for row in counts}
    return Answer(
        experiment=name,
        labels=tuple(
            _label_answer(experiment, progress, best_at, counts_at) for progress in read_progress(database, experiment)
        ),
    )


_Rows = dict[tuple[str, int], Row[Any]]


def _label_answer(experiment: Experiment, progress: Progress, best_at: _Rows, counts_at: _Rows) -> LabelAnswer:
    keys = [(progress.label, resolution) for resolution in experiment.search.resolutions]
    top = max((best_at[key] for key in keys if key in best_at), key=lambda row: float(row.auc), default=None)
    return LabelAnswer(
        label=progress.label,
        best=None if top is None else _best(top),
        reference=None,
        smallest_adequate=None,
        by_resolution=tuple(_at_resolution(key[1], best_at.get(key), counts_at.get(key)) for key in keys),
        trials={
            "complete": progress.complete,
            "pruned": progress.pruned,
            "running": progress.running,
            "failed": progress.failed,
            "waiting": progress.waiting,
        },
    )


def _best(row: Row[Any]) -> Best:
    low, high = auc_interval(row.auc, row.auc_se)
    return Best(
        resolution=row.resolution,
        architecture=row.architecture,
        batch_size=row.batch_size,
        feasible_batch_size=row.feasible_batch_size,
        learning_rate=row.learning_rate,
        auc=row.auc,
        auc_low=low,
        auc_high=high,
        split="validation",
        seeds=0,
    )


def _at_resolution(resolution: int, row: Row[Any] | None, counts: Row[Any] | None) -> AtResolution:
    low, high = (None, None) if row is None else auc_interval(row.auc, row.auc_se)
    return AtResolution(
        resolution=resolution,
        auc=None if row is None else row.auc,
        auc_low=low,
        auc_high=high,
        split="validation",
        complete=0 if counts is None else counts.complete,
        pruned=0 if counts is None else counts.pruned,
        seeds=0,
    )
