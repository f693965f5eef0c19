"""Worker processes that a test or a benchmark disturbs, and searches that do not depend on the order of trials."""

import os
import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

import optuna
from optuna.trial import TrialState

from acuity.storage.database import Database
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered
from acuity.study.search.recipes import own_recipes


def kill_processes(processes: Iterable[BaseProcess]) -> None:
    """Kill the processes that are alive, also stopped ones, and wait for all of them."""
    for process in processes:
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
        process.join()


def fix_initial_trials(database: Database, registered: Registered) -> None:
    """Fix the parameters of the initial trials, so they do not depend on the order in which trials end.

    The experiment has one resolution.
    """
    [resolution] = registered.experiment.search.resolutions
    for label in registered.experiment.labels:
        name = study_name(registered.experiment.name, label)
        study = optuna.load_study(study_name=name, storage=database.storage)
        recipes = own_recipes(registered.experiment, registered.exponents, label)
        for trial, recipe in zip(study.get_trials(states=(TrialState.WAITING,)), recipes, strict=False):
            database.storage.set_trial_system_attr(trial._trial_id, "fixed_params", recipe.at(resolution))
