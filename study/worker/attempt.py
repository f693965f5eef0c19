"""One attempt at a trial: suggest, choose the batch size, train, report each epoch, tell."""

import logging
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from acuity.objectives.device.device import is_usable
from acuity.objectives.errors import InputError
from acuity.objectives.training.checkpoint import network_alone
from acuity.objectives.training.interface import Diverged, Interrupted, Outcome
from acuity.storage.connection import OUTAGES
from acuity.storage.errors import OutageError, StorageError
from acuity.storage.retention import remove_spent_checkpoints
from acuity.storage.trials import claim_study
from acuity.study.dataset.image_set import labelled_images
from acuity.study.errors import DeviceLostError, UsageError
from acuity.study.registry.claims import Claim
from acuity.study.registry.recovery import fail, hand_back
from acuity.study.search.space import BELOW_THE_MEDIAN, make_pruner, prunable_epochs, suggest
from acuity.study.worker.context import WorkerContext
from acuity.study.worker.heartbeat import beating
from acuity.study.worker.reporter import Reporter
from acuity.study.worker.training import InfeasibleError, TooLargeError, name_of, note, train_claimed

logger = logging.getLogger(__name__)
_AWAY: tuple[type[Exception], ...] = (OutageError, *OUTAGES)
_STORAGE: tuple[type[Exception], ...] = (StorageError, *OUTAGES)


def run_attempt(context: WorkerContext, claim: Claim) -> None:
    """Train the claimed trial to its end and tell its value, or hand it back where this worker has to stop.

    A trial that cannot be trained ends PRUNED or FAILED, with the reason. The user's mistakes, a storage that stays
    unreachable and a device that no longer computes are raised; the trial's checkpoint is kept.
    """
    claim.study.pruner = make_pruner(context.experiment, running=claim.running)
    interval_s = context.experiment.workers.heartbeat_s
    with beating(context.database, claim.trial_id, interval_s=interval_s, contact=context.contact):
        try:
            _train_and_tell(context, claim)
        except UpdateFinishedTrialError:
            logger.warning("%s: another worker has taken it up; dropped", name_of(claim))
        except TooLargeError as error:
            _hand_back(context, claim, str(error))
        except Interrupted:
            _hand_back(context, claim, "its worker had to stop")
        except _AWAY:
            raise  # others notice the missing heartbeat and requeue the trial
        except (InputError, UsageError, StorageError) as error:
            _hand_back(context, claim, str(error))
            raise
        except Exception as error:
            logger.exception("%s failed", name_of(claim))
            if not is_usable(context.device):
                # The device fails, not the trial. Others notice the missing heartbeat and requeue the trial.
                raise DeviceLostError(f"{context.device.name} no longer computes: {error}") from error
            # Any other error fails this trial alone; the trial keeps the reason.
            reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:300]}"
            context.patiently(_fail, context, claim, reason)
    _tidy(context, claim)


def _train_and_tell(context: WorkerContext, claim: Claim) -> None:
    # Sampling happens here, outside the claim's lock.
    trial = context.patiently(optuna.Trial, claim.study, claim.trial_id)
    configuration = context.patiently(suggest, trial, context.experiment, context.registered.exponents)
    data = labelled_images(context.image_set, label=claim.label, resolution=configuration.resolution)
    prunable = range(0) if claim.first or claim.confirms else prunable_epochs(context.experiment)
    reporter = Reporter(context, trial, prunable=prunable)
    try:
        outcome = train_claimed(context, claim, configuration, data, reporter)
        reporter.send_rest()
    except (InfeasibleError, Diverged) as error:
        _tell_pruned(context, claim, trial, str(error))
        return
    note(context, claim, _measured(outcome) | _resumption(claim, outcome))
    if outcome.stopped:
        _tell_pruned(context, claim, trial, BELOW_THE_MEDIAN)
    else:
        _tell(context, claim, trial, value=outcome.auc)
    logger.info("%s: AUC %.3f after %d epochs", name_of(claim), outcome.auc, outcome.epochs)
    if claim.confirms:
        _keep_network(context, claim)


def _keep_network(context: WorkerContext, claim: Claim) -> None:
    """Keep only the network of the trial's last checkpoint, which later scores the test patients."""
    data = context.checkpoints.read(claim.checkpoint_study, claim.origin, attempt=claim.attempt)
    if data is not None:
        context.checkpoints.write(claim.checkpoint_study, claim.origin, attempt=claim.attempt, data=network_alone(data))


def _measured(outcome: Outcome) -> dict[str, Any]:
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
    """The epoch from which a later attempt continued; 0 records that it had to start again."""
    return {} if claim.attempt == 1 else {"resumed_epochs": outcome.resumed_epochs}


def _hand_back(context: WorkerContext, claim: Claim, reason: str) -> None:
    """Requeue the trial at once; during an outage others requeue it after the missing heartbeat."""
    try:
        hand_back(context.database, claim, reason=reason)
        logger.info("%s: handed back", name_of(claim))
    except OUTAGES as error:
        logger.warning("%s: not handed back, the database cannot be reached (%s)", name_of(claim), type(error).__name__)


def _tell_pruned(context: WorkerContext, claim: Claim, trial: optuna.Trial, reason: str) -> None:
    note(context, claim, {"reason": reason})
    _tell(context, claim, trial, state=TrialState.PRUNED)


def _tell(
    context: WorkerContext,
    claim: Claim,
    trial: optuna.Trial,
    *,
    value: float | None = None,
    state: TrialState | None = None,
) -> None:
    """Tell the trial once; repeating it is a no-op; raise UpdateFinishedTrialError if another worker took it."""
    finished = context.patiently(claim.study.tell, trial, value, state=state, skip_if_finished=True)
    if finished.state is TrialState.FAIL:
        raise UpdateFinishedTrialError


def _tidy(context: WorkerContext, claim: Claim) -> None:
    """Remove checkpoints that nobody needs; after an error the study's next trial removes them."""
    try:
        remove_spent_checkpoints(
            context.database,
            context.checkpoints,
            study_id=claim.study._study_id,
            folder=claim.checkpoint_study,
            all_complete=claim.confirms,
        )
    except _STORAGE as error:
        logger.warning("%s: unneeded checkpoints are not removed yet: %s", name_of(claim), error)


def _fail(context: WorkerContext, claim: Claim, reason: str) -> None:
    with claim_study(context.database, claim.study._study_id):
        trial = context.database.storage.get_trial(claim.trial_id)
        fail(context.database, claim.study, trial, reason=reason)
