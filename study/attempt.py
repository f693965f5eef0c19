"""One attempt at a trial: suggest, choose the batch, train, report each epoch, tell."""

import logging
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from objectives.checkpoint import network_alone
from objectives.errors import InputError
from objectives.task import Diverged, Interrupted, Outcome
from storage.claim import claim_study
from storage.database import OUTAGES
from storage.errors import OutageError, StorageError
from study.claimed_training import InfeasibleError, TooLargeError, name_of, note, train_claimed
from study.claims import Claim, fail, hand_back
from study.device import is_usable
from study.errors import DeviceLostError, UsageError
from study.heartbeat import beating
from study.image_set import labelled_images
from study.kept_checkpoints import remove_spent_checkpoints
from study.reporter import Reporter
from study.search import BELOW_THE_MEDIAN, make_pruner, prunable_epochs, suggest
from study.station import Station

logger = logging.getLogger(__name__)

_AWAY: tuple[type[Exception], ...] = (OutageError, *OUTAGES)
_STORAGE: tuple[type[Exception], ...] = (StorageError, *OUTAGES)


def run_attempt(station: Station, claim: Claim) -> None:
    """Train the claimed trial to its end and tell its value, or hand it back where this worker has to stop.

    A trial that fails for reasons of its own ends PRUNED or FAILED with the reason. The user's mistakes, a storage that
    stays away and a device that is lost are raised; the trial's checkpoint is kept.
    """
    claim.study.pruner = make_pruner(station.experiment, running=claim.running)
    interval_s = station.experiment.workers.heartbeat_s
    with beating(station.database, claim.trial_id, interval_s=interval_s, contact=station.contact):
        try:
            _train_and_tell(station, claim)
        except UpdateFinishedTrialError:
            logger.warning("%s: another worker has taken it up; dropped", name_of(claim))
        except TooLargeError as error:
            _hand_back(station, claim, str(error))
        except Interrupted:
            _hand_back(station, claim, "its worker was told to stop")
        except _AWAY:
            raise  # the trial's silence will tell the others
        except (InputError, UsageError, StorageError) as error:
            _hand_back(station, claim, str(error))
            raise
        except Exception as error:
            logger.exception("%s failed", name_of(claim))
            if not is_usable(station.device):
                # Neither the trial's fault nor curable here. Its silence will tell the others, as a crash's does.
                raise DeviceLostError(f"{station.device.name} computes no more: {error}") from error
            # A bad trial fails alone, whatever it raised; the reason is kept with it.
            reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:300]}"
            station.patiently(_fail, station, claim, reason)
    _tidy(station, claim)


def _train_and_tell(station: Station, claim: Claim) -> None:
    # Sampling happens here, outside the claim's lock.
    trial = station.patiently(optuna.Trial, claim.study, claim.trial_id)
    configuration = station.patiently(suggest, trial, station.experiment, station.registered.exponents)
    data = labelled_images(station.image_set, label=claim.label, resolution=configuration.resolution)
    prunable = range(0) if claim.first or claim.confirms else prunable_epochs(station.experiment)
    reporter = Reporter(station, trial, prunable=prunable)
    try:
        outcome = train_claimed(station, claim, configuration, data, reporter)
        reporter.send_rest()
    except (InfeasibleError, Diverged) as error:
        _tell_pruned(station, claim, trial, str(error))
        return
    note(station, claim, _measured(outcome) | _resumption(claim, outcome))
    if outcome.stopped:
        _tell_pruned(station, claim, trial, BELOW_THE_MEDIAN)
    else:
        _tell(station, claim, trial, value=outcome.auc)
    logger.info("%s: AUC %.3f after %d epochs", name_of(claim), outcome.auc, outcome.epochs)
    if claim.confirms:
        _keep_network(station, claim)


def _keep_network(station: Station, claim: Claim) -> None:
    """Leave the network alone in the trial's last checkpoint: the test patients are scored with it."""
    data = station.checkpoints.read(claim.checkpoint_study, claim.origin, attempt=claim.attempt)
    if data is not None:
        station.checkpoints.write(claim.checkpoint_study, claim.origin, attempt=claim.attempt, data=network_alone(data))


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
    """Where a later attempt went on, so that one that had to start from zero is on record."""
    return {} if claim.attempt == 1 else {"resumed_epochs": outcome.resumed_epochs}


def _hand_back(station: Station, claim: Claim, reason: str) -> None:
    """Requeue the trial at once; with the database away, its silence will tell the others as much."""
    try:
        hand_back(station.database, claim, reason=reason)
        logger.info("%s: handed back", name_of(claim))
    except OUTAGES as error:
        logger.warning("%s: not handed back, the database is away (%s)", name_of(claim), type(error).__name__)


def _tell_pruned(station: Station, claim: Claim, trial: optuna.Trial, reason: str) -> None:
    note(station, claim, {"reason": reason})
    _tell(station, claim, trial, state=TrialState.PRUNED)


def _tell(
    station: Station, claim: Claim, trial: optuna.Trial, *, value: float | None = None, state: TrialState | None = None
) -> None:
    """End the trial, once: where an outage cut off the answer it is told already, where another has it it is lost."""
    told = station.patiently(claim.study.tell, trial, value, state=state, skip_if_finished=True)
    if told.state is TrialState.FAIL:
        raise UpdateFinishedTrialError


def _tidy(station: Station, claim: Claim) -> None:
    """What is not removed now, the next trial of the study will remove."""
    try:
        remove_spent_checkpoints(
            station.database,
            station.checkpoints,
            study_id=claim.study._study_id,
            folder=claim.checkpoint_study,
            all_complete=claim.confirms,
        )
    except _STORAGE as error:
        logger.warning("%s: spent checkpoints stay for now: %s", name_of(claim), error)


def _fail(station: Station, claim: Claim, reason: str) -> None:
    with claim_study(station.database, claim.study._study_id):
        trial = station.database.storage.get_trial(claim.trial_id)
        fail(station.database, claim.study, trial, reason=reason)
