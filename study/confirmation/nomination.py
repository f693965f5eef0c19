"""Nomination: the configurations of the search that the confirmation retrains."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

from acuity.objectives.statistics.power import difference_variance
from acuity.storage.database import Database
from acuity.study.errors import UsageError
from acuity.study.registry.names import study_name
from acuity.study.registry.progress import read_progress
from acuity.study.registry.record import Registered
from acuity.study.units import counted

MAX_AUC_GAP = 0.05
"""A resolution is confirmed unless its best AUC is clearly more than this below the best AUC of the search."""
_LEVEL_OF_GAP = 0.025
"""Level of the one-sided test of a gap on validation patients."""


@dataclass(frozen=True)
class Nominee:
    """A configuration of the search that the confirmation retrains unchanged."""

    number: int
    """Number of its trial in the label's search."""
    resolution: int
    auc: float
    """Validation AUC of its trial."""
    parameters: dict[str, Any]
    batch_size: int
    feasible_batch_size: int
    seconds: float
    """Duration of its trial."""


@dataclass(frozen=True)
class SkippedResolution:
    """A searched resolution that is not confirmed, so that no verdict covers it."""

    resolution: int
    reason: Literal["no_complete_trial", "below_best", "not_named", "not_needed"]
    """"below_best": its best AUC is clearly more than MAX_AUC_GAP below the best AUC of the search. "not_named":
    [confirm] names other resolutions. "not_needed": on validation patients, a resolution between it and the largest
    loses more than the margin, so that the tests stop there."""
    validation_auc: float | None
    """Its best AUC in the search."""


@dataclass(frozen=True)
class Nomination:
    """The nominees of one label."""

    label: str
    nominees: tuple[Nominee, ...]
    """In ascending order of resolution, then in descending order of AUC."""
    trials: dict[int, int]
    """Number of finished trials of the search at each confirmed resolution."""
    skipped: tuple[SkippedResolution, ...]
    """In ascending order of resolution."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The confirmed resolutions, ascending."""
        return tuple(self.trials)


def nominate(database: Database, registered: Registered) -> tuple[Nomination, ...]:
    """Nominate the configurations with the highest validation AUC at each confirmed resolution of each label.

    UsageError where the search is not finished, where the experiment has no test patients, or where a resolution of
    [confirm] has no complete trial.
    """
    experiment = registered.experiment
    if experiment.data.paper_split:
        raise UsageError(
            f"{experiment.name} has no test patients (paper_split = true: 80 % training, 20 % validation), so nothing "
            "can be confirmed: search again under another name without paper_split"
        )
    unfinished = [
        f"{entry.label} has {entry.finished} of {experiment.search.trials}"
        for entry in read_progress(database, experiment)
        if entry.finished < experiment.search.trials
    ]
    if unfinished:
        raise UsageError(
            f"the search of {experiment.name} is not finished ({'; '.join(unfinished)} trials): nominees are the "
            "best of all its trials. Run `acuity launch FILE` to finish it"
        )
    return tuple(
        nominate_label(
            label,
            optuna.load_study(storage=database.storage, study_name=study_name(experiment.name, label)).get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
            ),
            resolutions=experiment.search.resolutions,
            only=experiment.confirm.resolutions,
            nominees=experiment.confirm.nominees,
        )
        for label in experiment.labels
    )


def nominate_label(
    label: str,
    trials: list[FrozenTrial],
    *,
    resolutions: tuple[int, ...],
    only: tuple[int, ...] | None,
    nominees: int = 1,
) -> Nomination:
    """Nominate configurations of one label from its finished trials.

    nominees: number of configurations of each resolution.
    only: the resolutions to confirm. By default these are the smallest and the largest with a complete trial, and those
    that `is_near_best`. A few validation patients can put a resolution far below the best AUC by chance. UsageError
    where a resolution to confirm has no complete trial.
    """
    complete: dict[int, list[FrozenTrial]] = {resolution: [] for resolution in sorted(resolutions)}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            complete[trial.params["resolution"]].append(trial)
    best_trials = {resolution: max(runs, key=_auc) for resolution, runs in complete.items() if runs}
    best = {resolution: _auc(run) for resolution, run in best_trials.items()}
    if not best:
        raise UsageError(
            f"label {label}: {counted(len(trials), 'trial')}, none of them complete; `acuity trials` prints the "
            "reasons. Remove the cause, or search again under another name with other networks or resolutions"
        )
    top = _auc_and_se(max(best_trials.values(), key=_auc))
    near_best = [resolution for resolution, run in best_trials.items() if is_near_best(_auc_and_se(run), top)]
    confirmed = sorted({*(only or (*near_best, min(best), max(best)))})
    missing = [resolution for resolution in confirmed if resolution not in best]
    if missing:
        raise UsageError(
            f"label {label}: {missing[0]} px has no complete trial, nothing to confirm there: raise search.trials, or "
            "name other resolutions under [confirm]"
        )
    finished = Counter(trial.params["resolution"] for trial in trials)
    return Nomination(
        label=label,
        nominees=tuple(
            _nominee(trial)
            for resolution in confirmed
            for trial in sorted(complete[resolution], key=lambda trial: (-_auc(trial), trial.number))[:nominees]
        ),
        trials={resolution: finished[resolution] for resolution in confirmed},
        skipped=tuple(
            SkippedResolution(
                resolution,
                reason="no_complete_trial" if resolution not in best else "not_named" if only else "below_best",
                validation_auc=best.get(resolution),
            )
            for resolution in complete
            if resolution not in confirmed
        ),
    )


def is_near_best(resolution: tuple[float, float], best: tuple[float, float]) -> bool:
    """Whether validation patients do not show that a resolution's AUC is more than MAX_AUC_GAP below the best.

    Each is an AUC with its standard error over patients. The one-sided test at 2.5 % ignores the variance over seeds,
    and that the best AUC is the best of many. So it leaves out a resolution in more than 2.5 %.
    """
    (auc, se), (top, top_se) = resolution, best
    standard_error = math.sqrt(difference_variance(se**2, top_se**2))
    return bool(top - auc - MAX_AUC_GAP <= float(norm.isf(_LEVEL_OF_GAP)) * standard_error)


def _auc_and_se(trial: FrozenTrial) -> tuple[float, float]:
    return _auc(trial), trial.user_attrs["auc_se"]


def _auc(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _nominee(trial: FrozenTrial) -> Nominee:
    attributes = trial.user_attrs
    return Nominee(
        number=trial.number,
        resolution=trial.params["resolution"],
        auc=_auc(trial),
        parameters=dict(trial.params),
        batch_size=attributes["batch_size"],
        feasible_batch_size=attributes["feasible_batch_size"],
        seconds=attributes["seconds"],
    )
