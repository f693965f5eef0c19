"""Count an experiment's trials by state, in SQL, which is fast at any number of trials."""

import json
from dataclasses import dataclass

from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.schema.trials_view import FINITE_VALUE
from acuity.study.config.schema import Experiment
from acuity.study.registry.names import study_name


@dataclass(frozen=True)
class LabelProgress:
    """Numbers of one label's trials by state; failed excludes attempts that were requeued."""

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
        """Number of trials that count towards the budget."""
        return self.complete + self.pruned


_PROGRESS = text(
    f"""
    select s.study_name, s.study_id,
        count(*) filter (where t.state = 'COMPLETE'), count(*) filter (where t.state = 'PRUNED'),
        count(*) filter (where t.state = 'RUNNING'), count(*) filter (where t.state = 'WAITING'),
        count(*) filter (where t.state = 'FAIL' and requeued.trial_id is null),
        max({FINITE_VALUE}) filter (where t.state = 'COMPLETE')
    from public.studies s
    left join public.trials t on t.study_id = s.study_id
    left join public.trial_values v on v.trial_id = t.trial_id
    left join public.trial_user_attributes requeued on requeued.trial_id = t.trial_id and requeued.key = 'requeued'
    where s.study_name = any(:names)
    group by s.study_name, s.study_id
    """
)


def read_progress(database: Database, experiment: Experiment) -> list[LabelProgress]:
    """One entry per label, in the experiment's order; a label without a study has none."""
    labels = _labels_by_study(experiment)
    with database.autocommitted() as connection:
        rows = {row[0]: row[1:] for row in connection.execute(_PROGRESS, {"names": list(labels)})}
    return [LabelProgress(label, *rows[name]) for name, label in labels.items() if name in rows]


FAILURES_IN_A_ROW = 5
"""Number of failed trials after which a label stops."""
# A requeued attempt continues as another trial, so it is no failure.
_NOT_REQUEUED = (
    "not exists (select from public.trial_user_attributes a where a.trial_id = t.trial_id and a.key = 'requeued')"
)


def list_failed_trials(database: Database, experiment: Experiment) -> list[int]:
    """Ids of the trials that have failed and were not requeued."""
    query = text(
        "select t.trial_id from public.studies s join public.trials t on t.study_id = s.study_id "
        f"where s.study_name = any(:names) and t.state = 'FAIL' and {_NOT_REQUEUED}"
    )
    with database.autocommitted() as connection:
        return [int(row[0]) for row in connection.execute(query, {"names": list(_labels_by_study(experiment))})]


def find_failing_labels(database: Database, experiment: Experiment, *, except_for: list[int]) -> dict[str, str]:
    """Labels with five failures as their last five ended trials, with the last failure's reason.

    except_for: ids of trials that failed in earlier launches. Trials are ordered by id, since workers' clocks differ.
    """
    query = text(
        f"""
        select s.study_name, (array_agg(ended.reason order by ended.trial_id desc))[1]
        from public.studies s cross join lateral (
            select t.trial_id, t.state,
                (select r.value_json from public.trial_user_attributes r
                    where r.trial_id = t.trial_id and r.key = 'reason') as reason
            from public.trials t
            where t.study_id = s.study_id and t.state in ('COMPLETE', 'PRUNED', 'FAIL')
                and not t.trial_id = any(:except_for) and {_NOT_REQUEUED}
            order by t.trial_id desc limit :many
        ) ended
        where s.study_name = any(:names)
            -- Most studies have no failed trial; this check makes the query ten times faster for them.
            and exists (select from public.trials f where f.study_id = s.study_id and f.state = 'FAIL')
        group by s.study_name having count(*) = :many and bool_and(ended.state = 'FAIL')
        """
    )
    labels = _labels_by_study(experiment)
    parameters = {"names": list(labels), "except_for": except_for, "many": FAILURES_IN_A_ROW}
    with database.autocommitted() as connection:
        rows = connection.execute(query, parameters).all()
    return {labels[name]: json.loads(reason) for name, reason in rows}


def _labels_by_study(experiment: Experiment) -> dict[str, str]:
    return {study_name(experiment.name, label): label for label in experiment.labels}
