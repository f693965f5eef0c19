"""How far an experiment is: trials counted by state, straight from SQL so that it answers at any size."""

import json
from dataclasses import dataclass

from sqlalchemy import text

from storage.database import Database
from study.experiment import Experiment
from study.register import study_name


@dataclass(frozen=True)
class Progress:
    """Trials of one label by state; failed leaves out attempts that another worker took up again."""

    label: str
    study_id: int
    complete: int
    pruned: int
    running: int
    waiting: int
    failed: int
    best_auc: float | None

    @property
    def finished(self) -> int:
        return self.complete + self.pruned


_PROGRESS = text(
    """
    select s.study_name, s.study_id,
        count(*) filter (where t.state = 'COMPLETE'), count(*) filter (where t.state = 'PRUNED'),
        count(*) filter (where t.state = 'RUNNING'), count(*) filter (where t.state = 'WAITING'),
        count(*) filter (where t.state = 'FAIL' and requeued.trial_id is null),
        max(v.value) filter (where t.state = 'COMPLETE')
    from studies s
    left join trials t on t.study_id = s.study_id
    left join trial_values v on v.trial_id = t.trial_id
    left join trial_user_attributes requeued on requeued.trial_id = t.trial_id and requeued.key = 'requeued'
    where s.study_name = any(:names)
    group by s.study_name, s.study_id
    """
)


def read_progress(database: Database, experiment: Experiment) -> list[Progress]:
    """One entry a label, in the experiment's order."""
    names = {study_name(experiment.name, label): label for label in experiment.labels}
    with database.engine.connect() as connection:
        rows = {row[0]: row[1:] for row in connection.execute(_PROGRESS, {"names": list(names)})}
    return [Progress(label, *rows[name]) for name, label in names.items() if name in rows]


_FAILURES_IN_A_ROW = 5

_FAILED = """
    from studies s join trials t on t.study_id = s.study_id
    left join trial_user_attributes requeued on requeued.trial_id = t.trial_id and requeued.key = 'requeued'
    left join trial_user_attributes reason on reason.trial_id = t.trial_id and reason.key = 'reason'
    where s.study_name = any(:names) and t.state in ('COMPLETE', 'PRUNED', 'FAIL') and requeued.trial_id is null
"""


def failed_trials(database: Database, experiment: Experiment) -> list[int]:
    """Ids of the trials that have failed for good so far."""
    query = text(f"select t.trial_id {_FAILED} and t.state = 'FAIL'")
    with database.engine.connect() as connection:
        return [int(row[0]) for row in connection.execute(query, {"names": _names(experiment)})]


def labels_that_fail(database: Database, experiment: Experiment, *, except_for: list[int]) -> dict[str, str]:
    """Labels whose last five ended trials all failed, with the last reason; except_for: failures of earlier launches.

    "Last" goes by trial id, since workers' clocks differ.
    """
    query = text(
        f"""
        select study_name, (array_agg(reason order by trial_id desc))[1] from (
            select s.study_name, t.trial_id, t.state, reason.value_json as reason,
                row_number() over (partition by s.study_id order by t.trial_id desc) as place
            {_FAILED} and not t.trial_id = any(:except_for)
        ) ended
        where place <= :many group by study_name
        having count(*) = :many and bool_and(state = 'FAIL')
        """
    )
    parameters = {"names": _names(experiment), "except_for": except_for, "many": _FAILURES_IN_A_ROW}
    with database.engine.connect() as connection:
        rows = connection.execute(query, parameters).all()
    return {name.removeprefix(f"{experiment.name}/"): json.loads(reason) for name, reason in rows}


def _names(experiment: Experiment) -> list[str]:
    return [study_name(experiment.name, label) for label in experiment.labels]
