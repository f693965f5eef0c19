"""Trials whose worker is gone or stopped: handed back, requeued or failed."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.trials import claim_study, write_attributes
from acuity.study.registry.claims import INHERITED, Claim, logger
from acuity.study.registry.record import Registered
from acuity.study.registry.studies import enqueue


def hand_back(database: Database, claim: Claim, *, reason: str) -> None:
    """Requeue an unfinished trial at once; another worker resumes it at its checkpoint. This counts as no retry."""
    with claim_study(database, claim.study._study_id):
        trial = database.storage.get_trial(claim.trial_id)
        if trial.state is TrialState.RUNNING:
            _requeue(database, claim.study, trial, reason=reason, retries=int(trial.user_attrs.get("retries", 0)))


def reap(database: Database, registered: Registered, studies: Mapping[str, optuna.Study], *, grace_s: float) -> None:
    """Requeue every trial of the experiment without a heartbeat for grace_s, or fail it after too many retries.

    The caller must have had contact with the database for grace_s: after an outage every heartbeat is old.
    """
    for study in studies.values():
        if not _silent_trials(database, study._study_id, grace_s=grace_s):
            continue
        with claim_study(database, study._study_id):
            for trial_id in _silent_trials(database, study._study_id, grace_s=grace_s):
                _reap_trial(database, registered, study, database.storage.get_trial(trial_id))


def _silent_trials(database: Database, study_id: int, *, grace_s: float) -> list[int]:
    query = text(
        """
        select t.trial_id from trials t left join trial_heartbeats h on h.trial_id = t.trial_id
        where t.study_id = :study_id and t.state = 'RUNNING'
            and (h.trial_id is null
                or h.heartbeat < (now() at time zone 'utc') - make_interval(secs => :grace_s))
        order by t.trial_id
        """
    )
    with database.engine.connect() as connection:
        rows = connection.execute(query, {"study_id": study_id, "grace_s": float(grace_s)})
        return [int(row[0]) for row in rows]


def _reap_trial(database: Database, registered: Registered, study: optuna.Study, trial: FrozenTrial) -> None:
    retries = int(trial.user_attrs.get("retries", 0)) + 1
    limit = registered.experiment.workers.max_retries
    if retries <= limit:
        logger.warning("%s trial %d: its worker is gone; another one takes it up", study.study_name, trial.number)
        _requeue(database, study, trial, reason="its worker is gone", retries=retries)
        return
    logger.error("%s trial %d: given up after %d workers died on it", study.study_name, trial.number, retries)
    fail(database, study, trial, reason=f"given up: {retries} workers died on it")


def fail(database: Database, study: optuna.Study, trial: FrozenTrial, *, reason: str) -> None:
    """End a trial as FAILED, outside the budget. A first trial is replaced by another at its resolution.

    The caller holds the study's claim lock.
    """
    if trial.state.is_finished():
        return
    part = trial.user_attrs.get("first")
    if part is not None:
        parameters = trial.params or trial.system_attrs["fixed_params"]
        again = {"resolution": parameters["resolution"]} if "resolution" in parameters else parameters
        enqueue(database, study, again, attributes={"first": part})
    _end(database, trial, {"reason": reason})


def _requeue(database: Database, study: optuna.Study, trial: FrozenTrial, *, reason: str, retries: int) -> None:
    """Enqueue the next attempt at a trial, then end this one. The caller holds the study's claim lock."""
    origin = int(trial.user_attrs.get("origin", trial.number))
    attempt = int(trial.user_attrs.get("attempt", 1)) + 1
    known = {key: trial.user_attrs[key] for key in INHERITED if key in trial.user_attrs}
    successors = [
        other._trial_id
        for other in study.get_trials(deepcopy=False)
        if other.user_attrs.get("origin") == origin and other.user_attrs.get("attempt") == attempt
    ]
    if not successors:  # else a worker that died between the two steps has enqueued it
        successors = [
            enqueue(
                database,
                study,
                trial.system_attrs.get("fixed_params", {}) | trial.params,
                attributes=known | {"origin": origin, "attempt": attempt, "retries": retries},
            )
        ]
    if not _end(database, trial, {"requeued": True, "reason": reason}):
        # The worker has finished its trial meanwhile. No worker can have taken the successor under our lock.
        _end(database, database.storage.get_trial(successors[0]), {"requeued": True, "reason": "not needed after all"})


def drop(database: Database, trial: FrozenTrial, *, reason: str) -> None:
    """End a waiting trial that is no longer needed; it counts for nothing.

    The caller holds the study's claim lock.
    """
    _end(database, trial, {"requeued": True, "reason": reason})


def _end(database: Database, trial: FrozenTrial, attributes: dict[str, Any]) -> bool:
    """Write attributes, then FAIL the trial: a finished trial takes none. False where it had ended already."""
    try:
        write_attributes(database, trial._trial_id, attributes)
        database.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True
