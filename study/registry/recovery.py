"""Requeue or fail the trials of workers that died or had to stop."""

import logging
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from acuity.storage.database import Database
from acuity.storage.trials import claim_study, write_attributes
from acuity.study.registry.claims import INHERITED, Claim
from acuity.study.registry.record import Registered
from acuity.study.registry.silence import SilentTrial, is_still_silent
from acuity.study.registry.studies import enqueue_trial

logger = logging.getLogger(__name__)


def release_trial(database: Database, claim: Claim, *, reason: str) -> None:
    """Requeue an unfinished trial at once; another worker resumes it at its checkpoint. This counts as no retry."""
    with claim_study(database, claim.study._study_id):
        trial = database.storage.get_trial(claim.trial_id)
        if trial.state is TrialState.RUNNING:
            _requeue(database, claim.study, trial, reason=reason, retries=int(trial.user_attrs.get("retries", 0)))


def requeue_silent_trials(
    database: Database, registered: Registered, studies: Iterable[optuna.Study], silent: Iterable[SilentTrial]
) -> None:
    """Requeue the trials of silent workers, or fail a trial after too many retries."""
    by_id = {study._study_id: study for study in studies}
    for trial in silent:
        study = by_id[trial.study_id]
        with claim_study(database, trial.study_id):
            if is_still_silent(database, trial):
                _requeue_silent(database, registered, study, database.storage.get_trial(trial.trial_id))


def fail_trial(database: Database, study: optuna.Study, trial: FrozenTrial, *, reason: str) -> None:
    """End a trial as FAILED, outside the budget. An initial trial is replaced by another at its resolution.

    The caller holds the study's claim lock.
    """
    if trial.state.is_finished():
        return
    part = trial.user_attrs.get("first")
    if part is not None:
        resolution = trial.system_attrs["fixed_params"]["resolution"]
        enqueue_trial(database, study, {"resolution": resolution}, attributes={"first": part})
    _end(database, trial, {"reason": reason})


def cancel_trial(database: Database, trial: FrozenTrial, *, reason: str) -> None:
    """End a waiting trial that is no longer needed, outside the budget.

    The caller holds the study's claim lock.
    """
    _end(database, trial, {"requeued": True, "reason": reason})


def _requeue_silent(database: Database, registered: Registered, study: optuna.Study, trial: FrozenTrial) -> None:
    retries = int(trial.user_attrs.get("retries", 0)) + 1
    if retries <= registered.experiment.workers.max_retries:
        logger.warning("%s trial %d: its worker is gone; another one resumes it", study.study_name, trial.number)
        _requeue(database, study, trial, reason="its worker is gone", retries=retries)
        return
    logger.error("%s trial %d: failed after %d workers died on it", study.study_name, trial.number, retries)
    fail_trial(database, study, trial, reason=f"given up: {retries} workers died on it")


def _requeue(database: Database, study: optuna.Study, trial: FrozenTrial, *, reason: str, retries: int) -> None:
    """Enqueue the next attempt at a trial, then end this one. The caller holds the study's claim lock."""
    origin = int(trial.user_attrs.get("origin", trial.number))
    attempt = int(trial.user_attrs.get("attempt", 1)) + 1
    inherited = {key: trial.user_attrs[key] for key in INHERITED if key in trial.user_attrs}
    successors = [
        other._trial_id
        for other in study.get_trials(deepcopy=False)
        if other.user_attrs.get("origin") == origin and other.user_attrs.get("attempt") == attempt
    ]
    if not successors:  # else a worker that died between the two steps has enqueued it
        successors = [
            enqueue_trial(
                database,
                study,
                trial.system_attrs.get("fixed_params", {}) | trial.params,
                attributes=inherited | {"origin": origin, "attempt": attempt, "retries": retries},
            )
        ]
    if not _end(database, trial, {"requeued": True, "reason": reason}):
        # The worker has finished its trial meanwhile. No worker can have taken the successor under our lock.
        cancel_trial(database, database.storage.get_trial(successors[0]), reason="not needed after all")


def _end(database: Database, trial: FrozenTrial, attributes: dict[str, Any]) -> bool:
    """Write attributes, then FAIL the trial: a finished trial accepts none. False where it had ended already."""
    try:
        write_attributes(database, trial._trial_id, attributes)
        database.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True
