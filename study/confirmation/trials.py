"""Trials of the studies `<experiment>/<label>/confirm`: nominees are retrained, then each resolution's finalist.

A worker that finds no waiting trial computes which trainings are missing and enqueues them under the study's claim
lock. So workers on many hosts need no coordinator.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.trials import claim_study
from acuity.study.config.schema import Experiment
from acuity.study.confirmation.nomination import Nomination, Nominee
from acuity.study.confirmation.plan import Plan, missing_runs, plan_from_table, unwanted_runs
from acuity.study.registry.claims import CanHold, Claim, start_waiting
from acuity.study.registry.names import confirm_study_name
from acuity.study.registry.record import Registered
from acuity.study.registry.recovery import drop
from acuity.study.registry.studies import enqueue


@dataclass(frozen=True)
class Confirming:
    """A label during its confirmation: its nominees and its plan."""

    nomination: Nomination
    plan: Plan


def plan_label(database: Database, experiment: Experiment, nomination: Nomination, *, seeds: int) -> Confirming:
    """Create a label's confirm study and store its plan. Existing trainings count."""
    plan = Plan(seeds=seeds, nominees=nomination.nominees)
    study = optuna.create_study(
        storage=database.storage,
        study_name=confirm_study_name(experiment.name, nomination.label),
        direction="maximize",
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since Optuna 3.2
        study.set_metric_names(["validation AUC"])
    study.set_user_attr("plan", asdict(plan) | {"trainings": plan.trainings()})
    return Confirming(nomination, plan)


def open_confirm_studies(database: Database, experiment: Experiment) -> dict[str, optuna.Study]:
    """The existing confirm studies, by label."""
    names = {confirm_study_name(experiment.name, label): label for label in experiment.labels}
    query = text(
        "select s.study_name from studies s join study_user_attributes a on a.study_id = s.study_id "
        "where s.study_name = any(:names) and a.key = 'plan' order by s.study_id"
    )
    with database.engine.connect() as connection:
        there = connection.scalars(query, {"names": list(names)}).all()
    return {names[name]: optuna.load_study(storage=database.storage, study_name=name) for name in there}


def claim_confirm_trial(
    database: Database, registered: Registered, studies: Mapping[str, optuna.Study], *, can_hold: CanHold
) -> Claim | None:
    """Enqueue missing trainings, then take one that fits on this device; None where there is none."""
    for label, study in studies.items():
        if not _is_there_work(study):  # read without the lock: this fills Optuna's cache
            continue
        with claim_study(database, study._study_id):
            plan, trials = read_plan(study), study.get_trials(deepcopy=False)
            for trial in unwanted_runs(plan, trials):
                drop(database, trial, reason="no longer asked for")
            for nominee, repeat in missing_runs(plan, trials):
                _enqueue_run(database, registered, study, nominee, repeat)
            claim = start_waiting(database, registered, label, study, can_hold)
        if claim is not None:
            return claim
    return None


def is_anything_left(studies: Mapping[str, optuna.Study]) -> bool:
    """Whether trainings run, wait or are to be enqueued."""
    return any(
        study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) or _is_there_work(study)
        for study in studies.values()
    )


def is_running_elsewhere(studies: Mapping[str, optuna.Study]) -> bool:
    """Whether another worker trains for a confirmation. It may die, or its result may require more trainings."""
    return any(
        study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        or next(missing_runs(read_plan(study), study.get_trials(deepcopy=False)), None)
        for study in studies.values()
    )


def read_plan(study: optuna.Study) -> Plan:
    """The study's plan."""
    return plan_from_table(study.user_attrs["plan"])


def _is_there_work(study: optuna.Study) -> bool:
    trials = study.get_trials(deepcopy=False)
    waiting = any(trial.state is TrialState.WAITING for trial in trials)
    return waiting or bool(next(missing_runs(read_plan(study), trials), None))


def _enqueue_run(
    database: Database, registered: Registered, study: optuna.Study, nominee: Nominee, repeat: int
) -> None:
    """Enqueue with the nominee's batch size: a device where it does not fit leaves the training to others."""
    identity = f"{registered.experiment.search.seed}/{study.study_name}/{nominee.number}/{repeat}"
    attributes: dict[str, Any] = {
        "nominee": nominee.number,
        "repeat": repeat,
        "seed": int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]),
        "batch_size": nominee.batch_size,
    }
    enqueue(database, study, nominee.parameters, attributes=attributes)
