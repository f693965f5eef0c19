"""Trials of the confirm studies `<experiment>/<label>/confirm`: workers enqueue missing trainings and claim them.

A worker computes which trainings are missing and enqueues them under the study's claim lock, so workers on many hosts
need no coordinator.
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
from acuity.storage.studies import create_study
from acuity.storage.trials import claim_study
from acuity.study.config.schema import Experiment
from acuity.study.confirmation.nomination import Nomination, Nominee
from acuity.study.confirmation.plan import (
    ConfirmationPlan,
    forgive_failures,
    missing_trainings,
    parse_plan,
    surplus_trainings,
)
from acuity.study.dataset.design import Design
from acuity.study.registry.claims import CanHold, Claim, claim_waiting_trial
from acuity.study.registry.names import confirm_study_name
from acuity.study.registry.record import Registered
from acuity.study.registry.recovery import cancel_trial
from acuity.study.registry.studies import enqueue_trial


@dataclass(frozen=True)
class LabelConfirmation:
    """The nominees of a label and the plan of its confirmation."""

    nomination: Nomination
    plan: ConfirmationPlan


def create_confirm_study(
    database: Database,
    experiment: Experiment,
    nomination: Nomination,
    *,
    design: Design,
    patients: tuple[tuple[int, int], ...],
) -> LabelConfirmation:
    """Create a label's confirm study, or open the existing one, and store the plan. Existing trainings are kept.

    Where every nominee of a resolution has failed too often, this plan retrains them again.

    patients: numbers of positive and negative patients of each fold. Empty if held-out.
    """
    plan = ConfirmationPlan(design, experiment.confirm.margin, nominees=nomination.nominees, patients=patients)
    label = nomination.label
    study = create_study(
        database, confirm_study_name(experiment.name, label), experiment=experiment.name, label=label, confirm=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since Optuna 3.2
        study.set_metric_names(["validation AUC"])
    with claim_study(database, study._study_id):  # a worker stores the plan that it read under this lock
        plan = forgive_failures(plan, study.get_trials(deepcopy=False))
        _store_plan(study, plan)
    return LabelConfirmation(nomination, plan)


def open_confirm_studies(database: Database, experiment: Experiment) -> dict[str, optuna.Study]:
    """The existing confirm studies by label."""
    names = {confirm_study_name(experiment.name, label): label for label in experiment.labels}
    query = text(
        "select s.study_name from public.studies s join public.study_user_attributes a on a.study_id = s.study_id "
        "where s.study_name = any(:names) and a.key = 'plan' order by s.study_id"
    )
    with database.autocommitted() as connection:
        existing = connection.scalars(query, {"names": list(names)}).all()
    return {names[name]: optuna.load_study(storage=database.storage, study_name=name) for name in existing}


def claim_confirm_trial(
    database: Database, registered: Registered, studies: Mapping[str, optuna.Study], *, can_hold: CanHold
) -> Claim | None:
    """Enqueue missing trainings, then claim a training that fits on this device. None where no training fits."""
    for label, study in studies.items():
        if not (_has_waiting_or_missing_trainings(study) or _has_old_number(study)):
            continue  # without the lock. These calls also fill Optuna's cache.
        with claim_study(database, study._study_id):
            stored, trials = study.user_attrs["plan"], study.get_trials(deepcopy=False)
            plan = parse_plan(stored)
            for trial in surplus_trainings(plan, trials):
                cancel_trial(database, trial, reason="the plan no longer contains it")
            for nominee, fold, repeat in missing_trainings(plan, trials):
                _enqueue_run(database, registered, study, plan.design, nominee, fold=fold, repeat=repeat)
            if stored["trainings"] != plan.trainings_needed(trials):
                _store_plan(study, plan)
            claim = claim_waiting_trial(database, registered, label, study, can_hold=can_hold)
        if claim is not None:
            return claim
    return None


def has_unfinished_trainings(studies: Mapping[str, optuna.Study]) -> bool:
    """Whether a training runs, waits or is missing."""
    return any(
        study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) or _has_waiting_or_missing_trainings(study)
        for study in studies.values()
    )


def is_running_elsewhere(studies: Mapping[str, optuna.Study]) -> bool:
    """Whether another worker trains for the confirmation. It may die, or its result may require more trainings."""
    return any(
        study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        or next(missing_trainings(read_plan(study), study.get_trials(deepcopy=False)), None)
        for study in studies.values()
    )


def _store_plan(study: optuna.Study, plan: ConfirmationPlan) -> None:
    """Store the plan with the number of trainings that it needs as far as is known, for the status."""
    trainings = plan.trainings_needed(study.get_trials(deepcopy=False))
    study.set_user_attr("plan", asdict(plan) | {"trainings": trainings})


def _has_old_number(study: optuna.Study) -> bool:
    """Whether trainings have changed the number of trainings that is stored with the plan."""
    stored = study.user_attrs["plan"]
    return bool(stored["trainings"] != parse_plan(stored).trainings_needed(study.get_trials(deepcopy=False)))


def read_plan(study: optuna.Study) -> ConfirmationPlan:
    """The stored plan of a confirm study."""
    return parse_plan(study.user_attrs["plan"])


def _has_waiting_or_missing_trainings(study: optuna.Study) -> bool:
    trials = study.get_trials(deepcopy=False)
    waiting = any(trial.state is TrialState.WAITING for trial in trials)
    return waiting or bool(next(missing_trainings(read_plan(study), trials), None))


def _enqueue_run(
    database: Database,
    registered: Registered,
    study: optuna.Study,
    design: Design,
    nominee: Nominee,
    *,
    fold: int | None,
    repeat: int,
) -> None:
    """Enqueue a training with the nominee's batch size. A device that cannot hold this batch does not claim it."""
    of_fold = "" if fold is None else f"{design.folds}/{fold}/"
    identity = f"{registered.experiment.search.seed}/{study.study_name}/{nominee.number}/{of_fold}{repeat}"
    attributes: dict[str, Any] = {
        "nominee": nominee.number,
        "repeat": repeat,
        "seed": int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]),
        "batch_size": nominee.batch_size,
    }
    if fold is not None:
        attributes |= {"fold": fold, "folds": design.folds, "folds_sha256": design.folds_sha256}
    enqueue_trial(database, study, nominee.parameters, attributes=attributes)
