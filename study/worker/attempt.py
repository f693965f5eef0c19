"""Run one attempt at a trial: suggest, train, report each epoch, tell."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from acuity.objectives.device.device import is_usable
from acuity.objectives.errors import InputError
from acuity.objectives.training.interface import Diverged, Interrupted, Outcome
from acuity.storage.connection import OUTAGES
from acuity.storage.errors import OutageError, StorageError
from acuity.storage.retention import remove_spent_checkpoints
from acuity.storage.trials import claim_study
from acuity.study.dataset.image_set import labelled_images, open_folds
from acuity.study.errors import DeviceLostError, UsageError
from acuity.study.registry.claims import Claim
from acuity.study.registry.recovery import fail_trial, release_trial
from acuity.study.search.space import BELOW_THE_MEDIAN, Configuration, make_pruner, prunable_epochs, suggest
from acuity.study.tracking.trackers import tracked_trial
from acuity.study.worker.context import WorkerContext
from acuity.study.worker.heartbeat import record_heartbeats
from acuity.study.worker.reporter import Reporter
from acuity.study.worker.training import (
    InfeasibleError,
    TooLargeError,
    train_claimed,
    trial_name,
    write_trial_attributes,
)

logger = logging.getLogger(__name__)
_OUTAGES: tuple[type[Exception], ...] = (OutageError, *OUTAGES)
_STORAGE_ERRORS: tuple[type[Exception], ...] = (StorageError, *OUTAGES)


def run_attempt(context: WorkerContext, claim: Claim) -> None:
    """Train the claimed trial to its end and tell its value, or release it where this worker has to stop.

    A trial that cannot be trained ends PRUNED or FAILED, with the reason. Raises InputError and UsageError for the
    user's mistakes, StorageError for a storage that stays unreachable, and DeviceLostError for a device that no longer
    computes. The trial's checkpoint is kept in these cases.
    """
    claim.study.pruner = make_pruner(context.experiment, running=claim.running)
    interval_s = context.experiment.workers.heartbeat_s
    with record_heartbeats(context.database, claim.trial_id, interval_s=interval_s, contact=context.contact):
        try:
            _train_and_tell(context, claim)
        except UpdateFinishedTrialError:
            logger.warning("%s: another worker runs it now; dropped here", trial_name(claim))
        except TooLargeError as error:
            _release(context, claim, str(error))
        except Interrupted:
            _release(context, claim, "its worker had to stop")
        except _OUTAGES:
            raise  # others notice the missing heartbeat and requeue the trial
        except (InputError, UsageError, StorageError) as error:
            _release(context, claim, str(error))
            raise
        except Exception as error:
            logger.exception("%s failed", trial_name(claim))
            if not is_usable(context.device):
                # The device fails, not the trial. Others notice the missing heartbeat and requeue the trial.
                raise DeviceLostError(f"{context.device.name} no longer computes: {error}") from error
            # Any other error fails this trial alone; the trial keeps the reason.
            reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:300]}"
            context.retry_outages(_fail, context, claim, reason)
            context.trackers.end("failed")
        finally:
            context.trackers.end("released")  # unless it has ended
    _remove_spent_checkpoints(context, claim)


def _train_and_tell(context: WorkerContext, claim: Claim) -> None:
    # Sampling happens here, outside the claim's lock.
    trial = context.retry_outages(optuna.Trial, claim.study, claim.trial_id)
    configuration = context.retry_outages(_suggest, context, trial)
    context.trackers.start(
        tracked_trial(
            context.experiment,
            label=claim.label,
            number=claim.number,
            is_confirmation=claim.is_confirmation,
            parameters=trial.params | {key: claim.inherited[key] for key in ("fold", "seed") if key in claim.inherited},
        )
    )
    data = labelled_images(
        context.image_set,
        label=claim.label,
        resolution=configuration.resolution,
        training=_rows_outside_fold(context, claim),
    )
    prunable = range(0) if claim.is_initial or claim.is_confirmation else prunable_epochs(context.experiment)
    reporter = Reporter(context, trial, prunable=prunable)
    try:
        outcome = train_claimed(context, claim, configuration, data, reporter)
        reporter.send_rest()
    except (InfeasibleError, Diverged) as error:
        _tell_pruned(context, claim, trial, str(error))
        return
    attributes = _measurements(outcome) | _resumption(claim, outcome)
    if outcome.stopped:
        _tell_pruned(context, claim, trial, BELOW_THE_MEDIAN, attributes)
    else:
        write_trial_attributes(context, claim, attributes)
        _tell(context, claim, trial, value=outcome.auc)
        context.trackers.end("complete")
    logger.info("%s: AUC %.3f after %d epochs", trial_name(claim), outcome.auc, outcome.epochs)


def _suggest(context: WorkerContext, trial: optuna.Trial) -> Configuration:
    with context.database.storage.parameters_together(trial._trial_id):
        return suggest(trial, context.experiment, context.registered.exponents)


def _rows_outside_fold(context: WorkerContext, claim: Claim) -> NDArray[np.int64] | None:
    """The rows of all folds but the claim's. None for a trial that trains on the training part.

    UsageError where the folds on this host are not those of the confirmation.
    """
    if "fold" not in claim.inherited:
        return None
    folds = open_folds(context.image_set, claim.inherited["folds"])
    if folds.sha256 != claim.inherited["folds_sha256"]:
        raise UsageError(
            f"{folds.path}: has other folds than the confirmation was planned with. Put back the file as it was, or "
            "run `acuity confirm` again: it plans with these folds"
        )
    rows: NDArray[np.int64] = folds.training_rows(claim.inherited["fold"])
    return rows


def _measurements(outcome: Outcome) -> dict[str, Any]:
    return {
        "auc_se": outcome.auc_se,
        "accuracy": outcome.accuracy,
        "average_precision": outcome.average_precision,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "images_per_second": outcome.images_per_second,
        "peak_memory_mib": outcome.peak_memory_mib,
    }


def _resumption(claim: Claim, outcome: Outcome) -> dict[str, Any]:
    """The epoch from which a later attempt continued. 0 means that it started from the beginning."""
    return {} if claim.attempt == 1 else {"resumed_epochs": outcome.resumed_epochs}


def _release(context: WorkerContext, claim: Claim, reason: str) -> None:
    """Requeue the trial at once; during an outage others notice the missing heartbeat and requeue it."""
    try:
        release_trial(context.database, claim, reason=reason)
        logger.info("%s: handed back", trial_name(claim))
    except OUTAGES as error:
        logger.warning(
            "%s: not handed back, the database cannot be reached (%s)", trial_name(claim), type(error).__name__
        )


def _tell_pruned(
    context: WorkerContext, claim: Claim, trial: optuna.Trial, reason: str, attributes: Mapping[str, Any] | None = None
) -> None:
    write_trial_attributes(context, claim, dict(attributes or {}) | {"reason": reason})
    _tell(context, claim, trial, state=TrialState.PRUNED)
    context.trackers.end("pruned", reason=reason)


def _tell(
    context: WorkerContext,
    claim: Claim,
    trial: optuna.Trial,
    *,
    value: float | None = None,
    state: TrialState | None = None,
) -> None:
    """Tell the trial once; repeating it is a no-op; raise UpdateFinishedTrialError if another worker took it."""
    finished = context.retry_outages(claim.study.tell, trial, value, state=state, skip_if_finished=True)
    if finished.state is TrialState.FAIL:  # this worker never writes FAIL here: another one has requeued the trial
        raise UpdateFinishedTrialError


def _remove_spent_checkpoints(context: WorkerContext, claim: Claim) -> None:
    """Remove the study's checkpoints that no trial needs; after an error the study's next trial removes them."""
    try:
        remove_spent_checkpoints(
            context.database,
            context.checkpoints,
            study_id=claim.study._study_id,
            folder=claim.checkpoint_study,
            all_complete=claim.is_confirmation,
        )
    except _STORAGE_ERRORS as error:
        logger.warning("%s: unneeded checkpoints are not removed yet: %s", trial_name(claim), error)


def _fail(context: WorkerContext, claim: Claim, reason: str) -> None:
    with claim_study(context.database, claim.study._study_id):
        trial = context.database.storage.get_trial(claim.trial_id)
        fail_trial(context.database, claim.study, trial, reason=reason)
