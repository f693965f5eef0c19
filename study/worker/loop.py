"""The main path of a worker: claim a trial of the label furthest from its budget, train it, tell its value, repeat."""

import logging
import math
import time
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any

import optuna

from acuity.objectives.device.device import check_precision, limit_memory, open_device
from acuity.objectives.device.gpu_lock import choose_device
from acuity.objectives.device.memory import resident_bytes
from acuity.storage.database import open_storage
from acuity.study.confirmation.trials import claim_confirm_trial, is_running_elsewhere, open_confirm_studies
from acuity.study.dashboard.publishing import try_to_publish_label
from acuity.study.dataset.image_set import open_image_set
from acuity.study.errors import UsageError
from acuity.study.fleet.signals import stop_signals
from acuity.study.registry.claims import Claim, claim_trial, open_studies
from acuity.study.registry.progress import FAILURES_IN_A_ROW, find_failing_labels, list_failed_trials, read_progress
from acuity.study.registry.record import check_same_images, checkpoints_of, read_registered, with_current_budget
from acuity.study.registry.recovery import requeue_silent_trials
from acuity.study.registry.silence import HeartbeatWatch
from acuity.study.registry.sources import check_same_sources
from acuity.study.tracking.trackers import open_trackers
from acuity.study.worker.attempt import run_attempt
from acuity.study.worker.batch_limit import known_memory_limit, memory_limit
from acuity.study.worker.context import WorkerContext
from acuity.study.worker.heartbeat import DatabaseContact

logger = logging.getLogger(__name__)
_IDLE_S = 1.0
_LONGEST_IDLE_S = 15.0
"""Of a worker without a trial: a thousand of them that ask every second are a load for the database."""
_GROWTH_BYTES = 2**30


def run_worker(
    name: str,
    *,
    storage_url: str | None = None,
    folder: Path | None = None,
    device: str = "auto",
    workers: int = 1,
    threads: int | None = None,
) -> bool:
    """Run trials of the experiment until every label has its budget, or until SIGTERM.

    folder: the index's folder on this host, if it is another one. workers: number of workers that share the device.
    Returns True where the process has grown so much that a new process must replace it.
    """
    with stop_signals() as stop, open_storage(storage_url) as database:
        registered = read_registered(database, name, folder=folder)
        experiment = registered.experiment
        image_set = open_image_set(experiment)
        check_same_images(registered, image_set.identity)
        check_same_sources(registered)
        share = open_device(
            choose_device(device, folder=image_set.cache.folder / "gpus"),
            workers=workers,
            threads=threads,
            memory_budget_gib=experiment.workers.memory_budget_gib,
        )
        check_precision(share.torch_device, experiment.training.precision)
        limit_memory(share)
        context = WorkerContext(
            database=database,
            registered=registered,
            studies=open_studies(database, registered, sampler_seed=SystemRandom().randrange(2**31)),
            image_set=image_set,
            device=share,
            checkpoints=checkpoints_of(registered),
            contact=DatabaseContact(longest_gap_s=experiment.workers.grace_s / 2),
            stop=stop,
            trackers=open_trackers(experiment),
        )
        try:
            return run_trials(context)
        finally:
            context.trackers.close(timeout_s=1 if stop.is_set() else 60)


def run_trials(context: WorkerContext) -> bool:
    """Run trials until the budgets are spent or the context's stop is set.

    Returns True where a new process must replace this one.
    """
    failed_before = context.retry_outages(list_failed_trials, context.database, context.experiment)
    failing: dict[str, str] = {}
    size_at_first: int | None = None
    notes = _Notes()
    watch = HeartbeatWatch(grace_s=context.experiment.workers.grace_s)
    idle_since = math.inf
    while not context.stop.is_set():
        budgeted = context.retry_outages(with_current_budget, context.database, context.registered)
        context = replace(context, registered=budgeted)
        confirming = context.retry_outages(open_confirm_studies, context.database, context.experiment)
        _requeue_silent_trials(context, confirming, watch)
        failing |= context.retry_outages(_find_failing_labels, context, except_for=failed_before)
        studies = {label: study for label, study in context.studies.items() if label not in failing}
        claim = _claim(context, studies, confirming)
        if claim is not None:
            idle_since = math.inf
            run_attempt(context, claim)
            if context.stop.is_set():
                break
            notes.write(context, claim.label)
            size_at_first = size_at_first or resident_bytes()
            if resident_bytes() - size_at_first > _GROWTH_BYTES:
                logger.info("this process has grown by more than 1 GiB; a new process replaces it")
                return True
        elif _budgets_are_spent(context, studies) and not context.retry_outages(is_running_elsewhere, confirming):
            break
        else:
            # Other workers run the last trials. This worker waits, in case one of them dies.
            idle_since = min(idle_since, time.monotonic())
            pause_s = idle_pause_s(time.monotonic() - idle_since, grace_s=context.experiment.workers.grace_s)
            context.stop.wait(pause_s * SystemRandom().uniform(0.5, 1.5))
    if not context.stop.is_set():
        notes.write_all(context)
    if failing:
        errors = "; ".join(f"{label}: {error}" for label, error in failing.items())
        raise UsageError(
            f"{FAILURES_IN_A_ROW} trials in a row failed, so these labels have stopped ({errors}). Remove the cause "
            "and launch again"
        )
    return False


def idle_pause_s(idle_s: float, *, grace_s: float) -> float:
    """Mean pause of a worker that has had no trial for idle_s.

    Half a grace period without a call breaks the contact with the database, without which no trial is requeued.
    """
    return min(max(_IDLE_S, idle_s / 4), _LONGEST_IDLE_S, grace_s / 4)


class _Notes:
    """Writes the dashboard's notes and plots: during the work in at most 1 % of its time, at the end all of them."""

    def __init__(self) -> None:
        self._next = 0.0

    def write(self, context: WorkerContext, label: str) -> None:
        if time.monotonic() < self._next:
            return
        began = time.monotonic()
        try_to_publish_label(context.database, context.registered, label, every_s=60)
        self._next = time.monotonic() + 100 * (time.monotonic() - began)

    def write_all(self, context: WorkerContext) -> None:
        for label in context.experiment.labels:
            try_to_publish_label(context.database, context.registered, label, every_s=0)


def _find_failing_labels(context: WorkerContext, *, except_for: list[int]) -> dict[str, str]:
    """The labels that must stop. Most studies have no failed trials, and a count is far cheaper than the query."""
    with context.database.autocommitted() as connection:
        counts = context.database.counts.read(connection, [study._study_id for study in context.studies.values()])
    if all(count.failed < FAILURES_IN_A_ROW for count in counts.values()):
        return {}
    return find_failing_labels(context.database, context.experiment, except_for=except_for)


def _requeue_silent_trials(
    context: WorkerContext, confirming: Mapping[str, optuna.Study], watch: HeartbeatWatch
) -> None:
    """Requeue trials of dead workers after one grace period of unbroken contact with the database.

    Right after an outage, or a pause of this process, the heartbeats of live workers are old, too.
    """
    studies = [*context.studies.values(), *confirming.values()]
    ids = [study._study_id for study in studies]
    silent = context.retry_outages(watch.find_silent, context.database, ids)
    if silent and context.contact.unbroken_s() > context.experiment.workers.grace_s:
        context.retry_outages(requeue_silent_trials, context.database, context.registered, studies, silent)


def _claim(
    context: WorkerContext, studies: Mapping[str, optuna.Study], confirming: Mapping[str, optuna.Study]
) -> Claim | None:
    """Claim a trial of the search, else one of a confirmation.

    A claim looks limits of memory up. Where one is missing, it is measured here, after the claim's lock is released,
    and the claim is repeated. A measurement takes up to minutes, and no other worker can claim during a claim.
    """
    for claim_next, candidates in ((claim_trial, studies), (claim_confirm_trial, confirming)):
        while True:
            try:
                claim = context.retry_outages(
                    claim_next, context.database, context.registered, candidates, can_hold=partial(_can_hold, context)
                )
            except _NotMeasuredError as missing:
                architecture, resolution = missing.architecture, missing.resolution
            else:
                break
            context.retry_outages(
                memory_limit,
                context.database,
                context.device,
                context.experiment,
                architecture=architecture,
                resolution=resolution,
            )
        if claim is not None:
            return claim
    return None


class _NotMeasuredError(Exception):
    """The fleet's table has no limit of this network on this device."""

    def __init__(self, architecture: str, resolution: int) -> None:
        super().__init__(architecture, resolution)
        self.architecture = architecture
        self.resolution = resolution


def _can_hold(context: WorkerContext, parameters: dict[str, Any], batch_size: int) -> bool:
    """Whether the batch fits on this device; True for a trial with open parameters. The caller holds a claim's lock.

    _NotMeasuredError where the fleet's table does not have the limit.
    """
    if not {"architecture", "resolution"} <= parameters.keys():
        return True
    architecture, resolution = parameters["architecture"], parameters["resolution"]
    limit = known_memory_limit(
        context.database, context.device, context.experiment, architecture=architecture, resolution=resolution
    )
    if limit is None:
        raise _NotMeasuredError(architecture, resolution)
    return batch_size <= limit


def _budgets_are_spent(context: WorkerContext, labels: Container[str]) -> bool:
    budget = context.experiment.search.trials
    progress = context.retry_outages(read_progress, context.database, context.experiment)
    return all(entry.finished >= budget for entry in progress if entry.label in labels)
