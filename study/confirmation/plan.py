"""Plan of a label's confirmation: which trainings are missing or surplus, and which nominee is the finalist."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from acuity.objectives.statistics.power import CORRELATION
from acuity.study.confirmation.nomination import Nominee
from acuity.study.dataset.design import Design
from acuity.study.errors import UsageError

_MAX_FAILURES = 3
"""A nominee with this many diverged or failed trainings is not retrained again."""
_STANDARD_ERRORS = 2.0
"""A loss on validation patients ends the trainings below a resolution if it exceeds the margin by this many."""


@dataclass(frozen=True)
class ConfirmationPlan:
    """The nominees and the design of one label's confirmation, stored with the confirm study for all workers."""

    design: Design
    margin: float
    nominees: tuple[Nominee, ...]

    def resolutions(self) -> dict[int, list[Nominee]]:
        """The nominees of each resolution, in ascending order of resolution."""
        return {
            resolution: [nominee for nominee in self.nominees if nominee.resolution == resolution]
            for resolution in sorted({nominee.resolution for nominee in self.nominees})
        }

    def trainings(self) -> int:
        """Number of trainings if none fails and every resolution is needed."""
        return sum(self._trainings_of(nominees) for nominees in self.resolutions().values())

    def trainings_needed(self, trials: Sequence[FrozenTrial]) -> int:
        """Number of trainings if none fails and only the resolutions needed by these trials are trained further."""
        needed = needed_resolutions(self, trials)
        return sum(
            self._trainings_of(nominees) if resolution in needed else count_complete(self, trials, resolution)
            for resolution, nominees in self.resolutions().items()
        )

    def _trainings_of(self, nominees: list[Nominee]) -> int:
        return len(nominees) + self.design.networks - 1


@dataclass(frozen=True)
class TrainedFinalist:
    """The finalist of a resolution with its complete trainings: by fold, then by repeat."""

    nominee: Nominee
    runs: tuple[FrozenTrial, ...]


def parse_plan(plan: dict[str, Any]) -> ConfirmationPlan:
    """The plan from its stored form."""
    return ConfirmationPlan(
        design=Design(**plan["design"]),
        margin=plan["margin"],
        nominees=tuple(Nominee(**nominee) for nominee in plan["nominees"]),
    )


def missing_trainings(
    plan: ConfirmationPlan, trials: Sequence[FrozenTrial]
) -> Iterator[tuple[Nominee, int | None, int]]:
    """Trainings to enqueue, as (nominee, fold, repeat), the largest resolution first.

    The first training of each nominee comes first, then those of each finalist. A training that diverged or failed is
    replaced by a training with another seed.
    """
    runs = _TrialsByNominee(plan, trials)
    for nominee, fold, count in _wanted(plan, trials, runs):
        last = max((run.user_attrs["repeat"] for run in runs.of(nominee, fold)), default=0)
        for repeat in range(last + 1, last + 1 + count - len(runs.active(nominee, fold))):
            yield nominee, fold, repeat


def surplus_trainings(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Waiting trainings that the plan does not contain, for instance after a smaller number of seeds."""
    runs = _TrialsByNominee(plan, trials)
    kept = {
        run._trial_id
        for nominee, fold, count in _wanted(plan, trials, runs)
        for run in runs.active(nominee, fold)[:count]
    }
    return [trial for trial in trials if trial.state is TrialState.WAITING and trial._trial_id not in kept]


def check_retrainable(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> None:
    """UsageError where every nominee of a needed resolution has reached the largest number of failures."""
    runs = _TrialsByNominee(plan, trials)
    for resolution, nominees in plan.resolutions().items():
        if resolution in needed_resolutions(plan, trials) and not runs.retrainable(nominees):
            reason = next((run.user_attrs.get("reason") for run in runs.all(nominees[0])[::-1]), "no reason is known")
            raise UsageError(
                f"no nominee at {resolution} px could be retrained ({reason}): raise [confirm] nominees, leave that "
                "resolution out of [confirm] resolutions, or widen the search"
            )


def find_finalists(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> dict[int, TrainedFinalist]:
    """The finalist of each needed resolution whose trainings are all complete."""
    runs, needed = _TrialsByNominee(plan, trials), needed_resolutions(plan, trials)
    return {
        resolution: finalist
        for resolution, nominees in plan.resolutions().items()
        if resolution in needed and (finalist := _trained(plan, nominees, runs)) is not None
    }


def count_complete(plan: ConfirmationPlan, trials: Sequence[FrozenTrial], resolution: int | None = None) -> int:
    """Number of complete trainings of the plan's nominees, at one resolution or at all."""
    runs = _TrialsByNominee(plan, trials)
    return sum(
        len(runs.complete(nominee, fold))
        for nominee in plan.nominees
        for fold in plan.design.fold_numbers()
        if resolution in (None, nominee.resolution)
    )


def needed_resolutions(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> tuple[int, ...]:
    """Resolutions whose trainings can matter for the verdict, ascending.

    The verdict's tests descend to the first resolution that fails. If validation patients show clearly that a fully
    trained resolution loses more than the margin against a larger one, no smaller resolution is needed, unless one of
    them had a higher AUC in the search and so may become the reference. No test patient is read for this.
    """
    resolutions, runs = plan.resolutions(), _TrialsByNominee(plan, trials)
    descending = sorted(resolutions, reverse=True)
    larger: list[TrainedFinalist] = []
    for number, resolution in enumerate(descending):
        finalist = _trained(plan, resolutions[resolution], runs)
        if finalist is None:
            break
        smaller = [nominee for each in descending[number + 1 :] for nominee in resolutions[each]]
        best = max(nominee.auc for each in descending[: number + 1] for nominee in resolutions[each])
        if any(_clearly_loses(finalist, each, margin=plan.margin) for each in larger) and all(
            nominee.auc < best for nominee in smaller
        ):
            return tuple(sorted(descending[: number + 1]))
        larger.append(finalist)
    return tuple(sorted(descending))


def _clearly_loses(finalist: TrainedFinalist, larger: TrainedFinalist, *, margin: float) -> bool:
    """Whether the validation AUC is below the larger resolution's by the margin and two standard errors or more.

    The standard error has the variances over patients (DeLong's of single networks, with the correlation of two
    resolutions assumed) and over seeds.
    """
    (auc, patient_variance, seed_variance), (other, other_patient_variance, other_seed_variance) = map(
        _validation_auc, (finalist, larger)
    )
    variance = patient_variance + other_patient_variance + seed_variance + other_seed_variance
    variance -= 2 * CORRELATION * math.sqrt(patient_variance * other_patient_variance)
    return other - auc - margin > _STANDARD_ERRORS * math.sqrt(variance)


def _validation_auc(finalist: TrainedFinalist) -> tuple[float, float, float]:
    """Mean validation AUC, and its variances over samples of patients and over seeds."""
    aucs = np.array([run.value for run in finalist.runs], dtype=np.float64)
    patient_variance = float(np.mean([run.user_attrs["auc_se"] ** 2 for run in finalist.runs]))
    return float(aucs.mean()), patient_variance, float(aucs.var(ddof=1)) / len(aucs)


def _trained(plan: ConfirmationPlan, nominees: list[Nominee], runs: "_TrialsByNominee") -> TrainedFinalist | None:
    """The finalist with its trainings. None where one is missing."""
    finalist = _finalist(plan, nominees, runs)
    if finalist is None:
        return None
    design = plan.design
    complete = [
        run for fold in design.fold_numbers() for run in runs.complete(finalist, fold)[: design.networks_per_fold]
    ]
    return TrainedFinalist(finalist, tuple(complete)) if len(complete) == design.networks else None


def _wanted(
    plan: ConfirmationPlan, trials: Sequence[FrozenTrial], runs: "_TrialsByNominee"
) -> Iterator[tuple[Nominee, int | None, int]]:
    """The number of trainings of each nominee and fold: one in all, or the design's number for a finalist."""
    design, needed = plan.design, needed_resolutions(plan, trials)
    first_fold = next(design.fold_numbers())
    resolutions = {resolution: plan.resolutions()[resolution] for resolution in reversed(needed)}
    finalists = {resolution: _finalist(plan, nominees, runs) for resolution, nominees in resolutions.items()}
    for resolution, nominees in resolutions.items():
        finalist = finalists[resolution]
        if finalist is not None:
            yield from ((finalist, fold, design.networks_per_fold) for fold in design.fold_numbers())
        else:
            yield from ((nominee, first_fold, 1) for nominee in runs.retrainable(nominees))


def _finalist(plan: ConfirmationPlan, nominees: list[Nominee], runs: "_TrialsByNominee") -> Nominee | None:
    """The nominee with the highest mean validation AUC of its trial in the search and its first retraining.

    A single nominee is the finalist without a retraining. None until every retrainable nominee is retrained, or where
    no nominee is retrainable.
    """
    retrainable = runs.retrainable(nominees)
    if len(nominees) == len(retrainable) == 1:
        return retrainable[0]
    first_fold = next(plan.design.fold_numbers())
    first = {nominee.number: runs.complete(nominee, first_fold)[:1] for nominee in retrainable}
    if not retrainable or not all(first.values()):
        return None

    def mean_auc(nominee: Nominee) -> float:
        (run,) = first[nominee.number]
        assert run.value is not None
        return (nominee.auc + run.value) / 2

    return max(retrainable, key=lambda nominee: (mean_auc(nominee), -nominee.number))


class _TrialsByNominee:
    """Trials of the plan's design by nominee and fold, ordered by repeat: of each training only the last attempt."""

    def __init__(self, plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> None:
        self._runs: dict[tuple[int, int | None], list[FrozenTrial]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.user_attrs.get("repeat", 0), trial.number)):
            attributes = trial.user_attrs
            of_design = attributes.get("folds_sha256") == plan.design.folds_sha256
            if "nominee" in attributes and "requeued" not in attributes and of_design:
                self._runs.setdefault((attributes["nominee"], attributes.get("fold")), []).append(trial)

    def all(self, nominee: Nominee) -> list[FrozenTrial]:
        return [run for (number, _), runs in self._runs.items() if number == nominee.number for run in runs]

    def of(self, nominee: Nominee, fold: int | None) -> list[FrozenTrial]:
        return self._runs.get((nominee.number, fold), [])

    def complete(self, nominee: Nominee, fold: int | None) -> list[FrozenTrial]:
        return [run for run in self.of(nominee, fold) if run.state is TrialState.COMPLETE]

    def active(self, nominee: Nominee, fold: int | None) -> list[FrozenTrial]:
        """The nominee's complete, running and waiting trainings, in this order."""
        order = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
        found = (run for run in self.of(nominee, fold) if run.state in order)
        return sorted(found, key=lambda run: order.index(run.state))

    def retrainable(self, nominees: list[Nominee]) -> list[Nominee]:
        """The nominees with fewer than the largest number of failures."""

        def failures(nominee: Nominee) -> int:
            return sum(run.state in (TrialState.PRUNED, TrialState.FAIL) for run in self.all(nominee))

        return [nominee for nominee in nominees if failures(nominee) < _MAX_FAILURES]
