"""One attempt at a trial: suggest, choose the batch, train, report each epoch, tell."""

import logging
import os
import socket
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from objectives.batch_size import FeasibleBatch, cap_batch, is_out_of_memory
from objectives.checkpoint import network_alone
from objectives.errors import InputError
from objectives.task import Diverged, Hyperparameters, Interrupted, LabelledImages, Outcome
from objectives.training import train
from storage.attributes import write_attributes
from storage.claim import claim_study
from storage.database import OUTAGES
from storage.errors import OutageError, StorageError
from study.claims import Claim, fail, hand_back
from study.device import lower_memory_limit, memory_limit
from study.errors import UsageError
from study.experiment import Experiment
from study.heartbeat import beating
from study.image_set import labelled_images
from study.kept_checkpoints import remove_spent_checkpoints
from study.reporter import Reporter
from study.search import Configuration, choose_batch_size, make_pruner, prunable_epochs, suggest
from study.station import Station

logger = logging.getLogger(__name__)

_AWAY: tuple[type[Exception], ...] = (OutageError, *OUTAGES)
_STORAGE: tuple[type[Exception], ...] = (StorageError, *OUTAGES)


class _InfeasibleError(Exception):
    """The trial's batch cannot run, by the search's own rules: it ends PRUNED, so that the sampler learns of it."""


class _TooLargeError(Exception):
    """A nominee's own batch does not run here: another device's turn."""


def run_attempt(station: Station, claim: Claim) -> None:
    """Train the claimed trial to its end and tell its value, or hand it back where this worker has to stop.

    A trial that fails for reasons of its own ends PRUNED or FAILED with the reason. The user's mistakes and a storage
    that stays away are raised; the trial's checkpoint is kept.
    """
    claim.study.pruner = make_pruner(station.experiment, running=claim.running)
    interval_s = station.experiment.workers.heartbeat_s
    with beating(station.database, claim.trial_id, interval_s=interval_s, contact=station.contact):
        try:
            _train_and_tell(station, claim)
        except UpdateFinishedTrialError:
            logger.warning("%s: another worker has taken it up; dropped", _name(claim))
        except _TooLargeError as error:
            _hand_back(station, claim, str(error))
        except Interrupted:
            _hand_back(station, claim, "its worker was told to stop")
        except _AWAY:
            raise  # the trial's silence will tell the others
        except (InputError, UsageError, StorageError) as error:
            _hand_back(station, claim, str(error))
            raise
        except Exception as error:
            # A bad trial fails alone, whatever it raised; the reason is kept with it.
            logger.exception("%s failed", _name(claim))
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
        outcome = _train(station, claim, configuration, data, reporter)
        reporter.send_rest()
    except (_InfeasibleError, Diverged) as error:
        _tell_pruned(station, claim, trial, str(error))
        return
    _note(station, claim, _measured(outcome) | _resumption(claim, outcome))
    if outcome.stopped:
        _tell_pruned(station, claim, trial, "below the median of earlier trials at this epoch")
    else:
        _tell(station, claim, trial, value=outcome.auc)
    logger.info("%s: AUC %.3f after %d epochs", _name(claim), outcome.auc, outcome.epochs)
    if claim.confirms:
        _keep_network(station, claim)


def _train(
    station: Station, claim: Claim, configuration: Configuration, data: LabelledImages, reporter: Reporter
) -> Outcome:
    """Train at the batch that fits; where memory runs out all the same, note it and try again at half the batch."""
    batch = _feasible(station, configuration, data)
    batch_size = _batch_size(station, claim, configuration, batch)
    torch.set_num_threads(_threads(station, claim))
    out_of_memory = 0
    while True:
        _note(station, claim, _plan(station, claim, batch, batch_size))
        hyperparameters = _hyperparameters(station.experiment, configuration, batch_size)
        outcome = _train_unless_out_of_memory(station, claim, hyperparameters, data, reporter)
        if outcome is not None:
            return outcome
        # Out of the except block by now, so that the failed step's tensors are gone.
        if batch_size < 4:
            raise _InfeasibleError(f"out of memory with a batch of {batch_size} on {station.device.name}")
        logger.warning("%s: out of memory with a batch of %d, on with half", _name(claim), batch_size)
        batch_size //= 2
        batch = FeasibleBatch(size=batch_size, cap="memory")
        station.patiently(
            lower_memory_limit,
            station.database,
            station.device,
            station.experiment,
            architecture=configuration.architecture,
            resolution=configuration.resolution,
            limit=batch_size,
        )
        if claim.confirms:
            raise _TooLargeError(f"out of memory on {station.device.name} at the nominee's own batch")
        out_of_memory += 1
        _note(station, claim, {"out_of_memory": out_of_memory})


def _train_unless_out_of_memory(
    station: Station, claim: Claim, hyperparameters: Hyperparameters, data: LabelledImages, reporter: Reporter
) -> Outcome | None:
    checkpoints, attempt = station.checkpoints, claim.attempt
    try:
        return train(
            hyperparameters,
            data,
            seed=_seed(station, claim),
            device=station.device.torch_device,
            report=reporter,
            should_stop=station.stop.is_set,
            load_checkpoint=lambda: checkpoints.read(claim.checkpoint_study, claim.origin, attempt=attempt),
            save_checkpoint=lambda data: checkpoints.write(
                claim.checkpoint_study, claim.origin, attempt=attempt, data=data
            ),
        )
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if station.device.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _feasible(station: Station, configuration: Configuration, data: LabelledImages) -> FeasibleBatch:
    search = station.experiment.search
    limit = station.patiently(
        memory_limit,
        station.database,
        station.device,
        station.experiment,
        architecture=configuration.architecture,
        resolution=configuration.resolution,
    )
    batch = cap_batch(
        limit,
        training_images=len(data.training),
        max_batch_size=search.max_batch_size,
        min_updates_per_epoch=search.min_updates_per_epoch,
    )
    if batch.size < 2:
        raise _InfeasibleError(
            f"not even 2 images fit ({batch.cap}): {configuration.architecture} at {configuration.resolution} px on "
            f"{station.device.name}"
        )
    return batch


def _batch_size(station: Station, claim: Claim, configuration: Configuration, batch: FeasibleBatch) -> int:
    inherited = claim.inherited.get("batch_size")
    if inherited is not None:
        return int(inherited)
    chosen = choose_batch_size(configuration, station.experiment, feasible=batch.size)
    if chosen is None:
        raise _InfeasibleError(
            f"a batch of {station.experiment.search.batch} is not feasible: {batch.size} is the largest ({batch.cap})"
        )
    return chosen


def _hyperparameters(experiment: Experiment, configuration: Configuration, batch_size: int) -> Hyperparameters:
    training = experiment.training
    return Hyperparameters(
        architecture=configuration.architecture,
        resolution=configuration.resolution,
        batch_size=batch_size,
        learning_rate=configuration.learning_rate,
        epochs=training.epochs,
        network_input=training.network_input,
        pretrained=training.pretrained,
        weights=training.weights,
        precision=training.precision,
        weight_decay=training.weight_decay,
        augment=training.augment,
    )


def _seed(station: Station, claim: Claim) -> int:
    return int(claim.inherited.get("seed", claim.training_seed(station.experiment.search.seed)))


def _threads(station: Station, claim: Claim) -> int:
    """Those of the first attempt: sums by another number of threads differ in their last digits."""
    return int(claim.inherited.get("threads", station.device.threads))


def _plan(station: Station, claim: Claim, batch: FeasibleBatch, batch_size: int) -> dict[str, Any]:
    """What is known of the trial before it trains; a successor inherits what decides its value."""
    return {
        "batch_size": batch_size,
        "feasible_batch_size": batch.size,
        "batch_cap": batch.cap,
        "device": station.device.name,
        "precision": station.experiment.training.precision,
        "threads": _threads(station, claim),
        "seed": _seed(station, claim),
        "origin": claim.origin,
        "attempt": claim.attempt,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "split_sha256": station.registered.split_sha256,
        "index_sha256": station.registered.index_sha256,
    }


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


def _note(station: Station, claim: Claim, attributes: dict[str, Any]) -> None:
    """Write user attributes; always before the trial is told, since a finished one takes none."""
    station.patiently(write_attributes, station.database, claim.trial_id, attributes)


def _hand_back(station: Station, claim: Claim, reason: str) -> None:
    """Requeue the trial at once; with the database away, its silence will tell the others as much."""
    try:
        hand_back(station.database, claim, reason=reason)
        logger.info("%s: handed back", _name(claim))
    except OUTAGES as error:
        logger.warning("%s: not handed back, the database is away (%s)", _name(claim), type(error).__name__)


def _tell_pruned(station: Station, claim: Claim, trial: optuna.Trial, reason: str) -> None:
    _note(station, claim, {"reason": reason})
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
        logger.warning("%s: spent checkpoints stay for now: %s", _name(claim), error)


def _fail(station: Station, claim: Claim, reason: str) -> None:
    with claim_study(station.database, claim.study._study_id):
        trial = station.database.storage.get_trial(claim.trial_id)
        fail(station.database, station.registered, claim.study, trial, reason=reason)


def _name(claim: Claim) -> str:
    return f"{claim.study.study_name} trial {claim.number}"
