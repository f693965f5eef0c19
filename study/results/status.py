"""Status of an experiment: finished trials, running trials on all hosts, and trainings of a confirmation."""

import json
import time
from dataclasses import dataclass

from sqlalchemy import text

from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database
from acuity.study.config.schema import Experiment
from acuity.study.registry.names import confirm_study_name
from acuity.study.registry.progress import LabelProgress, read_progress


class EpochClock:
    """Measures the epochs per second of running trials over repeated reads."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[int, float]] = {}
        self._latest: dict[tuple[str, int], tuple[int, float]] = {}

    def epochs_per_second(self, trial: "Running") -> float | None:
        """Rate since the first epoch whose end was observed; None until another epoch has ended."""
        key, now = (trial.label, trial.number), (trial.epoch, time.monotonic())
        known = self._latest.setdefault(key, now)
        if known[0] != trial.epoch:
            self._latest[key] = now
            self._first.setdefault(key, now)
        if key not in self._first or self._latest[key] == self._first[key]:
            return None
        (epoch, began), (latest, ended) = self._first[key], self._latest[key]
        return (latest - epoch) / (ended - began)


@dataclass(frozen=True)
class Running:
    """A running trial and its reports so far."""

    label: str
    number: int
    resolution: int | None
    architecture: str | None
    epoch: int
    """Finished epochs; 0 before the first."""
    auc: float | None
    device: str | None
    heartbeat_age_s: float | None


_RUNNING = text(
    """
    select t.label || case when t.confirm then ' (confirm)' else '' end, t.number, t.resolution, t.architecture,
        coalesce(last.step, 0), last.intermediate_value,
        t.device,
        extract(epoch from (now() at time zone 'utc') - h.heartbeat)::double precision
    from acuity.trials t
    left join trial_heartbeats h on h.trial_id = t.trial_id
    left join lateral (
        select i.step, i.intermediate_value from trial_intermediate_values i
        where i.trial_id = t.trial_id order by i.step desc limit 1
    ) last on true
    where t.experiment = :name and t.state = 'RUNNING'
    order by t.trial_id
    """
)


def read_running(database: Database, experiment: Experiment) -> list[Running]:
    """The running trials of the experiment and of its confirmation, oldest first."""
    with database.engine.connect() as connection:
        return [Running(*row) for row in connection.execute(_RUNNING, {"name": experiment.name})]


@dataclass(frozen=True)
class Retraining:
    """The trainings of one label's confirmation; planned: their number if none diverges or fails."""

    label: str
    complete: int
    running: int
    planned: int
    seeds: int


_RETRAINING = text(
    """
    select s.study_name, a.value_json, count(*) filter (where t.state = 'COMPLETE'),
        count(*) filter (where t.state = 'RUNNING')
    from studies s
    join study_user_attributes a on a.study_id = s.study_id and a.key = 'plan'
    left join trials t on t.study_id = s.study_id
    where s.study_name = any(:names)
    group by s.study_name, a.value_json
    """
)


def read_retraining(database: Database, experiment: Experiment) -> list[Retraining]:
    """One entry for each label whose confirmation has begun, in the experiment's order."""
    names = {confirm_study_name(experiment.name, label): label for label in experiment.labels}
    with database.engine.connect() as connection:
        rows = {name: rest for name, *rest in connection.execute(_RETRAINING, {"names": list(names)})}
    return [
        Retraining(
            label,
            complete=complete,
            running=running,
            planned=max(plan["trainings"], complete),
            seeds=plan["seeds"],
        )
        for name, label in names.items()
        if name in rows
        for table, complete, running in [rows[name]]
        for plan in [json.loads(table)]
    ]


@dataclass(frozen=True)
class ExperimentStatus:
    """An experiment's trials by state, its running trials, and its confirmation's trainings, if that has begun."""

    experiment: Experiment
    progress: list[LabelProgress]
    running: list[Running]
    retraining: list[Retraining]
    confirmed: bool
    """Whether the confirmation has its results."""

    @property
    def finished(self) -> int:
        """Number of finished trials and complete trainings."""
        return sum(entry.finished for entry in self.progress) + sum(entry.complete for entry in self.retraining)

    @property
    def remaining(self) -> int:
        """Number of trials and trainings that the budgets, and a confirmation that has begun, still need."""
        search = sum(max(0, self.experiment.search.trials - entry.finished) for entry in self.progress)
        return search if self.confirmed else search + sum(entry.planned - entry.complete for entry in self.retraining)


def read_status(database: Database, experiment: Experiment) -> ExperimentStatus:
    """A few statements over all trials: a tenth of a second at 100,000 of them."""
    retraining = read_retraining(database, experiment)
    stored = find_confirmation(database, experiment.name) if retraining else None
    return ExperimentStatus(
        experiment=experiment,
        progress=read_progress(database, experiment),
        running=read_running(database, experiment),
        retraining=retraining,
        confirmed=stored is not None and all(entry.seeds <= stored.protocol["seeds"] for entry in retraining),
    )
