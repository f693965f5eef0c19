"""A claimed trial's training, at the batch that fits this worker's device."""

import logging
import os
import socket
from typing import Any

import torch

from objectives.batch_size import FeasibleBatch, cap_batch
from objectives.out_of_memory import is_out_of_memory
from objectives.task import Hyperparameters, LabelledImages, Outcome
from objectives.training import train
from storage.attributes import write_attributes
from study.claims import Claim
from study.device import held_by_others, lower_memory_limit, memory_limit
from study.errors import UsageError
from study.hyperparameters import make_hyperparameters
from study.reporter import Reporter
from study.search import Configuration, choose_batch_size
from study.station import Station

logger = logging.getLogger(__name__)


class InfeasibleError(Exception):
    """The trial's batch cannot run, by the search's own rules: it ends PRUNED, so that the sampler learns of it."""


class TooLargeError(Exception):
    """A nominee's own batch does not run here: another device's turn."""


def train_claimed(
    station: Station, claim: Claim, configuration: Configuration, data: LabelledImages, reporter: Reporter
) -> Outcome:
    """Train at the batch that fits; where memory runs out all the same, note it and try again at half the batch.

    The fleet learns of a smaller batch once it has run. Where other programs hold the memory, it does not, and where
    nothing else helps either it is a UsageError: neither trials nor the fleet's table pay for it.
    """
    batch = _feasible(station, configuration, data)
    batch_size = _batch_size(station, claim, configuration, batch)
    plan = _plan(station, claim, batch, batch_size)
    torch.set_num_threads(_threads(station, claim))
    out_of_memory, held = 0, None
    while True:
        note(station, claim, _plan(station, claim, batch, batch_size))
        hyperparameters = make_hyperparameters(
            station.experiment,
            architecture=configuration.architecture,
            resolution=configuration.resolution,
            batch_size=batch_size,
            learning_rate=configuration.learning_rate,
        )
        outcome = _train_unless_out_of_memory(station, claim, hyperparameters, data, reporter)
        if outcome is not None:
            if out_of_memory and not held:
                _tell_the_fleet(station, configuration, limit=batch_size)
            return outcome
        # Out of the except block by now, so that the failed step's tensors are gone.
        held = held or held_by_others(station.device)
        as_asked = isinstance(station.experiment.search.batch, int)
        if held and (claim.confirms or as_asked or batch_size < 4):
            note(station, claim, plan)  # what whoever takes it up inherits
            raise UsageError(held)
        if batch_size < 4:
            raise InfeasibleError(f"out of memory with a batch of {batch_size} on {station.device.name}")
        if claim.confirms or as_asked:
            _tell_the_fleet(station, configuration, limit=batch_size // 2)
        if claim.confirms:
            raise TooLargeError(f"out of memory on {station.device.name} at the nominee's own batch")
        if as_asked:
            raise InfeasibleError(f"out of memory with the batch of {batch_size} on {station.device.name}")
        logger.warning("%s: out of memory with a batch of %d, on with half", name_of(claim), batch_size)
        batch_size //= 2
        batch = FeasibleBatch(size=batch_size, cap="memory")
        out_of_memory += 1
        note(station, claim, {"out_of_memory": out_of_memory})


def _tell_the_fleet(station: Station, configuration: Configuration, *, limit: int) -> None:
    station.patiently(
        lower_memory_limit,
        station.database,
        station.device,
        station.experiment,
        architecture=configuration.architecture,
        resolution=configuration.resolution,
        limit=limit,
    )


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
            workers=station.device.workers,
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
        raise InfeasibleError(
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
        raise InfeasibleError(
            f"a batch of {station.experiment.search.batch} is not feasible: {batch.size} is the largest ({batch.cap})"
        )
    return chosen


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
        "split_sha256": station.registered.identity.split_sha256,
        "index_sha256": station.registered.identity.index_sha256,
    }


def note(station: Station, claim: Claim, attributes: dict[str, Any]) -> None:
    """Write user attributes; always before the trial is told, since a finished one takes none."""
    station.patiently(write_attributes, station.database, claim.trial_id, attributes)


def name_of(claim: Claim) -> str:
    """The trial as logs call it."""
    return f"{claim.study.study_name} trial {claim.number}"
