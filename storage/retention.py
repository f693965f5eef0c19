"""Remove checkpoints that no trial needs. The best trial's checkpoint at each resolution stays."""

import math
from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from acuity.storage.checkpoints import Checkpoints
from acuity.storage.database import Database


def remove_spent_checkpoints(
    database: Database, checkpoints: Checkpoints, *, study_id: int, folder: str, all_complete: bool
) -> None:
    """Remove the checkpoints that a study's trials no longer need, including those that dead workers left.

    folder: the study's name among the checkpoints. all_complete: keep the checkpoint of every complete trial, as a
    confirmation does.
    """
    # List the files first: every file listed here belongs to a trial that the reading below can see.
    stored = checkpoints.attempts(folder)
    trials = database.storage.get_all_trials(study_id, deepcopy=False)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    kept = {_attempt(trial) for trial in (complete if all_complete else _best_by_resolution(complete))}
    # A trial that runs or waits may read the checkpoint of an earlier attempt.
    live = {_attempt(trial)[0] for trial in trials if not trial.state.is_finished()}
    checkpoints.remove(folder, {(origin, attempt) for origin, attempt in stored - kept if origin not in live})


def _best_by_resolution(complete: Iterable[FrozenTrial]) -> Iterable[FrozenTrial]:
    best: dict[int, FrozenTrial] = {}
    for trial in complete:  # in the order of their numbers: of equal trials the first one stays
        resolution = trial.params.get("resolution")
        if resolution is not None and (resolution not in best or _value(trial) > _value(best[resolution])):
            best[resolution] = trial
    return best.values()


def _value(trial: FrozenTrial) -> float:
    """The trial's value; below all others where it is not finite."""
    return trial.value if trial.value is not None and math.isfinite(trial.value) else -math.inf


def _attempt(trial: FrozenTrial) -> tuple[int, int]:
    """The trial's origin and attempt, under which its checkpoint is stored."""
    return int(trial.user_attrs.get("origin", trial.number)), int(trial.user_attrs.get("attempt", 1))
