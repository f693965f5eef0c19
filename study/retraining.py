"""Progress of each label's confirmation, counted in SQL."""

import json
from dataclasses import dataclass

from sqlalchemy import text

from storage.database import Database
from study.config_schema import Experiment
from study.confirm_trials import plan_from_table
from study.register import confirm_study_name


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
            planned=max(plan.trainings(), complete),
            seeds=plan.seeds,
        )
        for name, label in names.items()
        if name in rows
        for table, complete, running in [rows[name]]
        for plan in [plan_from_table(json.loads(table))]
    ]
