"""Create the Optuna studies of an experiment and enqueue their initial trials."""

import warnings
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from acuity.storage.database import Database
from acuity.storage.studies import create_study
from acuity.storage.trials import claim_study
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered
from acuity.study.search.history import read_history
from acuity.study.search.initial_design import plan_initial_trials

_TO_ENQUEUE = "acuity:first_trials"
"""A study's system attribute: its initial trials while a launch enqueues them, then an empty list."""


def make_studies(database: Database, registered: Registered) -> None:
    """Create the missing studies of the labels and enqueue their missing initial trials."""
    informed = bool(read_history(database, registered.experiment, registered.exponents))
    for label in registered.experiment.labels:
        _make_study(database, registered, label, informed=informed)


def _make_study(database: Database, registered: Registered, label: str, *, informed: bool) -> None:
    experiment = registered.experiment
    study = create_study(
        database, study_name(experiment.name, label), experiment=experiment.name, label=label, confirm=False
    )
    with claim_study(database, study._study_id):
        trials = study.get_trials(deepcopy=False)
        planned = database.storage.get_study_system_attrs(study._study_id).get(_TO_ENQUEUE)
        if planned == []:
            return
        if planned is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since Optuna 3.2
                study.set_metric_names(["validation AUC"])
            planned = [
                [initial.part, initial.parameters]
                for initial in plan_initial_trials(experiment, registered.exponents, label, informed=informed)
            ]
            database.storage.set_study_system_attr(study._study_id, _TO_ENQUEUE, planned)
        # An interrupted launch has enqueued some of them. A failed trial has a successor with "first", so it is not
        # counted.
        enqueued = sum("first" in trial.user_attrs and trial.state is not TrialState.FAIL for trial in trials)
        for part, parameters in planned[enqueued:]:
            enqueue_trial(database, study, parameters, attributes={"first": part})
        database.storage.set_study_system_attr(study._study_id, _TO_ENQUEUE, [])


def enqueue_trial(
    database: Database, study: optuna.Study, parameters: dict[str, Any], *, attributes: dict[str, Any]
) -> int:
    """Add a waiting trial with these parameters and return its id. The caller holds the study's claim lock."""
    return database.storage.create_new_trial(
        study._study_id,
        template_trial=create_trial(
            state=TrialState.WAITING, system_attrs={"fixed_params": parameters}, user_attrs=attributes
        ),
    )
