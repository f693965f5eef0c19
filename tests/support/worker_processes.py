"""Worker processes that a test or a benchmark disturbs, and searches that do not depend on the order of trials."""

import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from typing import Any

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


def count_epochs(path: str, *, wait: bool) -> None:
    """Append a byte to the file for each epoch that a training of this process finishes.

    wait: until the epoch's checkpoint is written, before the next epoch starts.
    """
    from acuity.objectives.training import train
    from acuity.objectives.training.checkpoint import Checkpoint
    from acuity.objectives.training.checkpoint_writer import CheckpointWriter

    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    trained: list[None] = []
    train_one_epoch = train._train_one_epoch

    def train_and_note(*arguments: Any, **keywords: Any) -> None:
        train_one_epoch(*arguments, **keywords)
        trained.append(None)

    def counting(
        write: Callable[[CheckpointWriter, Checkpoint], None],
    ) -> Callable[[CheckpointWriter, Checkpoint], None]:
        def count_and_write(writer: CheckpointWriter, checkpoint: Checkpoint) -> None:
            if trained:  # not for an attempt that resumes after its last epoch
                trained.clear()
                os.write(file, b".")
            write(writer, checkpoint)
            if wait and writer._writing is not None:
                writer._writing.exception()

        return count_and_write

    train._train_one_epoch = train_and_note
    CheckpointWriter.keep = counting(CheckpointWriter.keep)  # type: ignore[method-assign]
    CheckpointWriter.write_last = counting(CheckpointWriter.write_last)  # type: ignore[method-assign]


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
