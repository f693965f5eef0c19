"""Train a claimed trial at a batch size that fits the worker's device."""

import logging
import os
import socket
from typing import Any

import torch

from acuity.objectives.device.device import memory_shortage
from acuity.objectives.device.memory import is_out_of_memory
from acuity.objectives.training.interface import Hyperparameters, LabelledImages, Outcome
from acuity.objectives.training.step_memory import FeasibleBatch, cap_batch
from acuity.objectives.training.train import train
from acuity.storage.trials import write_attributes
from acuity.study.errors import UsageError
from acuity.study.registry.claims import Claim
from acuity.study.search.hyperparameters import make_hyperparameters
from acuity.study.search.space import Configuration, choose_batch_size
from acuity.study.worker.batch_limit import element_limit, lower_memory_limit, memory_limit
from acuity.study.worker.context import WorkerContext
from acuity.study.worker.reporter import Reporter

logger = logging.getLogger(__name__)


class InfeasibleError(Exception):
    """The trial's batch size is not feasible. The trial ends PRUNED, so that the sampler learns from it."""


class TooLargeError(Exception):
    """A nominee's batch size does not fit this device: another device must train it."""


def train_claimed(
    context: WorkerContext, claim: Claim, configuration: Configuration, data: LabelledImages, reporter: Reporter
) -> Outcome:
    """Train at a feasible batch size; where memory still runs out, retry at half of it.

    A smaller batch that has run is written to the fleet's table, unless other programs hold the memory. Where they do
    and no smaller batch is allowed, UsageError is raised and neither the trial nor the table records a limit.
    InfeasibleError or TooLargeError where the batch does not fit and must not be halved.
    """
    batch = _feasible_batch(context, configuration, data)
    batch_size = _choose_batch_size(context, claim, configuration, batch)
    planned = _planned_attributes(context, claim, batch, batch_size)
    torch.set_num_threads(_threads(context, claim))
    out_of_memory, held = 0, None
    while True:
        write_trial_attributes(context, claim, _planned_attributes(context, claim, batch, batch_size))
        hyperparameters = make_hyperparameters(
            context.experiment,
            architecture=configuration.architecture,
            resolution=configuration.resolution,
            batch_size=batch_size,
            learning_rate=configuration.learning_rate,
        )
        outcome = _train_unless_out_of_memory(context, claim, hyperparameters, data, reporter)
        if outcome is not None:
            if out_of_memory and not held:
                _record_limit(context, configuration, limit=batch_size)
            return outcome
        # The except block has ended, so the failed step's tensors are freed.
        held = held or memory_shortage(context.device)
        is_fixed = isinstance(context.experiment.search.batch, int)
        if held and (claim.is_confirmation or is_fixed or batch_size < 4):
            write_trial_attributes(context, claim, planned)  # the next attempt inherits these attributes
            raise UsageError(held)
        if claim.is_confirmation:
            _record_limit(context, configuration, limit=batch_size // 2)
            raise TooLargeError(f"out of memory on {context.device.name} at the nominee's batch size")
        if batch_size < 4:
            raise InfeasibleError(f"out of memory with a batch of {batch_size} on {context.device.name}")
        if is_fixed:
            _record_limit(context, configuration, limit=batch_size // 2)
            raise InfeasibleError(f"out of memory with the batch of {batch_size} on {context.device.name}")
        logger.warning("%s: out of memory with a batch of %d; retrying with half of it", trial_name(claim), batch_size)
        batch_size //= 2
        batch = FeasibleBatch(size=batch_size, cap="memory")
        out_of_memory += 1
        write_trial_attributes(context, claim, {"out_of_memory": out_of_memory})


def _record_limit(context: WorkerContext, configuration: Configuration, *, limit: int) -> None:
    context.retry_outages(
        lower_memory_limit,
        context.database,
        context.device,
        context.experiment,
        architecture=configuration.architecture,
        resolution=configuration.resolution,
        limit=limit,
    )


def _train_unless_out_of_memory(
    context: WorkerContext, claim: Claim, hyperparameters: Hyperparameters, data: LabelledImages, reporter: Reporter
) -> Outcome | None:
    checkpoints, attempt = context.checkpoints, claim.attempt
    try:
        return train(
            hyperparameters,
            data,
            seed=_seed(context, claim),
            device=context.device.torch_device,
            image_budget_bytes=context.device.image_budget_bytes,
            capture_steps=context.experiment.workers.capture_steps,
            report=reporter,
            should_stop=context.stop.is_set,
            load_checkpoint=lambda: checkpoints.read(claim.checkpoint_study, claim.origin, attempt=attempt),
            save_checkpoint=lambda data: checkpoints.write(
                claim.checkpoint_study, claim.origin, attempt=attempt, data=data
            ),
            checkpoint_s=context.experiment.workers.checkpoint_s,
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def _feasible_batch(context: WorkerContext, configuration: Configuration, data: LabelledImages) -> FeasibleBatch:
    search = context.experiment.search
    limit = context.retry_outages(
        memory_limit,
        context.database,
        context.device,
        context.experiment,
        architecture=configuration.architecture,
        resolution=configuration.resolution,
    )
    countable = element_limit(
        context.device,
        context.experiment,
        architecture=configuration.architecture,
        resolution=configuration.resolution,
    )
    batch = cap_batch(
        limit,
        countable=countable,
        training_images=len(data.training),
        max_batch_size=search.max_batch_size,
        min_updates_per_epoch=search.min_updates_per_epoch,
    )
    if batch.size < 2:
        raise InfeasibleError(
            f"not even 2 images fit ({batch.cap}): {configuration.architecture} at {configuration.resolution} px on "
            f"{context.device.name}"
        )
    return batch


def _choose_batch_size(context: WorkerContext, claim: Claim, configuration: Configuration, batch: FeasibleBatch) -> int:
    inherited = claim.inherited.get("batch_size")
    if inherited is not None:
        return int(inherited)
    chosen = choose_batch_size(configuration, context.experiment, feasible=batch.size)
    if chosen is None:
        raise InfeasibleError(
            f"a batch of {context.experiment.search.batch} is not feasible: {batch.size} is the largest ({batch.cap})"
        )
    return chosen


def _seed(context: WorkerContext, claim: Claim) -> int:
    return int(claim.inherited.get("seed", claim.training_seed(context.experiment.search.seed)))


def _threads(context: WorkerContext, claim: Claim) -> int:
    """Number of threads of the first attempt: sums with another number of threads differ in their last digits."""
    return int(claim.inherited.get("threads", context.device.threads))


def _planned_attributes(context: WorkerContext, claim: Claim, batch: FeasibleBatch, batch_size: int) -> dict[str, Any]:
    """Attributes of the trial before it trains; a later attempt inherits those that determine its value."""
    return {
        "batch_size": batch_size,
        "feasible_batch_size": batch.size,
        "batch_cap": batch.cap,
        "device": context.device.name,
        "precision": context.experiment.training.precision,
        "threads": _threads(context, claim),
        "seed": _seed(context, claim),
        "origin": claim.origin,
        "attempt": claim.attempt,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "split_sha256": context.registered.identity.split_sha256,
        "index_sha256": context.registered.identity.index_sha256,
    }


def write_trial_attributes(context: WorkerContext, claim: Claim, attributes: dict[str, Any]) -> None:
    """Write user attributes of the trial, always before `tell`: a finished trial accepts none."""
    context.retry_outages(write_attributes, context.database, claim.trial_id, attributes)
    context.trackers.record(attributes)


def trial_name(claim: Claim) -> str:
    """The trial's name in logs."""
    return f"{claim.study.study_name} trial {claim.number}"
