"""The main path of a worker: claim a trial of the label furthest from its budget, train it, report, tell."""

import logging
import random
import time
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from acuity.objectives.device.device import limit_memory, open_device, resident_bytes
from acuity.objectives.device.gpu_lock import choose_device
from acuity.storage.database import open_storage
from acuity.study.confirmation.trials import claim_confirm_trial, is_running_elsewhere, open_confirm_studies
from acuity.study.dashboard.notes import show_quietly
from acuity.study.dataset.image_set import open_image_set
from acuity.study.errors import UsageError
from acuity.study.fleet.signals import stop_signals
from acuity.study.registry.claims import claim_trial, open_studies
from acuity.study.registry.progress import failed_trials, labels_that_fail, read_progress
from acuity.study.registry.record import check_same_images, checkpoints_of, recall, with_budget_of_today
from acuity.study.registry.recovery import reap
from acuity.study.worker.attempt import run_attempt
from acuity.study.worker.batch_limit import memory_limit
from acuity.study.worker.context import WorkerContext
from acuity.study.worker.heartbeat import DatabaseContact

logger = logging.getLogger(__name__)
_IDLE_S = 1.0
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

    folder: where the index's folder lies on this host, if elsewhere. workers: how many share the device.
    Returns True where the process has grown so much that a fresh one should replace it.
    """
    with stop_signals() as stop, open_storage(storage_url) as database:
        registered = recall(database, name, folder=folder)
        experiment = registered.experiment
        image_set = open_image_set(experiment)
        check_same_images(registered, image_set.identity)
        share = open_device(
            choose_device(device, folder=image_set.cache.folder / "gpus"),
            workers=workers,
            threads=threads,
            memory_budget_gib=experiment.workers.memory_budget_gib,
        )
        limit_memory(share)
        context = WorkerContext(
            database=database,
            registered=registered,
            studies=open_studies(database, registered, sampler_seed=random.SystemRandom().randrange(2**31)),
            image_set=image_set,
            device=share,
            checkpoints=checkpoints_of(registered),
            contact=DatabaseContact(longest_gap_s=experiment.workers.grace_s / 2),
            stop=stop,
        )
        return _work(context)


def _work(context: WorkerContext) -> bool:
    failed_before = context.patiently(failed_trials, context.database, context.experiment)
    failing: dict[str, str] = {}
    size_at_first: int | None = None
    notes = _Notes()
    while not context.stop.is_set():
        budgeted = context.patiently(with_budget_of_today, context.database, context.registered)
        context = replace(context, registered=budgeted)
        confirming = context.patiently(open_confirm_studies, context.database, context.experiment)
        _reap(context, confirming)
        failing |= context.patiently(labels_that_fail, context.database, context.experiment, except_for=failed_before)
        studies = {label: study for label, study in context.studies.items() if label not in failing}
        can_hold = partial(_can_hold, context)
        claim = context.patiently(
            claim_trial, context.database, context.registered, studies, can_hold=can_hold
        ) or context.patiently(claim_confirm_trial, context.database, context.registered, confirming, can_hold=can_hold)
        if claim is not None:
            run_attempt(context, claim)
            notes.write(context, claim.label)
            size_at_first = size_at_first or resident_bytes()
            if resident_bytes() - size_at_first > _GROWTH_BYTES:
                logger.info("this process has grown by more than 1 GiB; a fresh one replaces it")
                return True
        elif _nothing_left(context, studies) and not context.patiently(is_running_elsewhere, confirming):
            break
        else:
            # Others run the last trials; this worker waits, in case one of them dies.
            context.stop.wait(_IDLE_S * random.uniform(0.5, 1.5))
    if not context.stop.is_set():
        notes.write_all(context)
    if failing:
        raise UsageError(
            "; ".join(f"{label} stopped, since five trials in a row failed: {failing[label]}" for label in failing)
        )
    return False


class _Notes:
    """Writes the dashboard's notes and plots, in at most a hundredth of the worker's time until it exits."""

    def __init__(self) -> None:
        self._next = 0.0

    def write(self, context: WorkerContext, label: str) -> None:
        if time.monotonic() < self._next:
            return
        began = time.monotonic()
        show_quietly(context.database, context.registered, label, every_s=60)
        self._next = time.monotonic() + 100 * (time.monotonic() - began)

    def write_all(self, context: WorkerContext) -> None:
        for label in context.experiment.labels:
            show_quietly(context.database, context.registered, label, every_s=0)


def _reap(context: WorkerContext, confirming: Mapping[str, optuna.Study]) -> None:
    """Requeue dead trials; after an outage or a pause all heartbeats are old, so wait one grace period first."""
    grace_s = context.experiment.workers.grace_s
    context.contact.seen()
    if context.contact.unbroken_s() > grace_s:
        for studies in (context.studies, confirming):
            context.patiently(reap, context.database, context.registered, studies, grace_s=grace_s)


def _can_hold(context: WorkerContext, parameters: dict[str, Any], batch_size: int) -> bool:
    if not {"architecture", "resolution"} <= parameters.keys():
        return True
    limit = memory_limit(
        context.database,
        context.device,
        context.experiment,
        architecture=parameters["architecture"],
        resolution=parameters["resolution"],
    )
    return batch_size <= limit


def _nothing_left(context: WorkerContext, labels: Container[str]) -> bool:
    budget = context.experiment.search.trials
    progress = context.patiently(read_progress, context.database, context.experiment)
    return all(entry.finished >= budget for entry in progress if entry.label in labels)
