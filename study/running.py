"""Running trials on all hosts: the epoch, device and last heartbeat of each."""

import time
from dataclasses import dataclass

from sqlalchemy import text

from storage.database import Database
from study.config_schema import Experiment


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
