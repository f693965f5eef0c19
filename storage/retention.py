"""Remove checkpoints that no trial needs. The best trial's checkpoint at each resolution stays."""

from sqlalchemy import text

from acuity.storage.checkpoints import Checkpoints
from acuity.storage.database import Database
from acuity.storage.schema.trials_view import FINITE_VALUE

_KEPT = text(
    f"""
    with kept as (
        select trial_id, number, state::text from public.trials
        where study_id = :study_id and state in ('RUNNING', 'WAITING')
        union
        (select distinct on (p.param_value) t.trial_id, t.number, t.state::text
        from public.trials t
        join public.trial_values v on v.trial_id = t.trial_id
        join public.trial_params p on p.trial_id = t.trial_id and p.param_name = 'resolution'
        where t.study_id = :study_id and t.state = 'COMPLETE' and not :all_complete
        order by p.param_value, {FINITE_VALUE} desc nulls last, t.number)
        union
        select trial_id, number, state::text from public.trials
        where study_id = :study_id and state = 'COMPLETE' and :all_complete
    )
    select coalesce(origin.value_json::integer, k.number), coalesce(attempt.value_json::integer, 1), k.state
    from kept k
    left join public.trial_user_attributes origin on origin.trial_id = k.trial_id and origin.key = 'origin'
    left join public.trial_user_attributes attempt on attempt.trial_id = k.trial_id and attempt.key = 'attempt'
    """
)


def remove_spent_checkpoints(
    database: Database, checkpoints: Checkpoints, *, study_id: int, folder: str, all_complete: bool
) -> None:
    """Remove the checkpoints that a study's trials no longer need, including those that dead workers left.

    folder: the study's name among the checkpoints. all_complete: keep the checkpoint of every complete trial, as a
    confirmation does.
    """
    # List the files first: every file listed here belongs to a trial that the query below can see.
    stored = checkpoints.attempts(folder)
    with database.engine.connect() as connection:
        rows = connection.execute(_KEPT, {"study_id": study_id, "all_complete": all_complete}).all()
    complete = {(origin, attempt) for origin, attempt, state in rows if state == "COMPLETE"}
    # A trial that runs or waits may read the checkpoint of an earlier attempt.
    live = {origin for origin, _, state in rows if state != "COMPLETE"}
    checkpoints.remove(folder, {(origin, attempt) for origin, attempt in stored - complete if origin not in live})
