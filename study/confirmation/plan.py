"""Plan of a label's confirmation: which trainings are missing or surplus, and which nominee is the finalist."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from acuity.study.confirmation.nomination import Nominee
from acuity.study.errors import UsageError

_MAX_FAILURES = 3
"""A nominee with this many diverged or failed trainings is not retrained again."""


@dataclass(frozen=True)
class ConfirmationPlan:
    """The nominees and the number of seeds of one label, stored with the confirm study for all workers."""

    seeds: int
    """Number of trainings of each finalist."""
    nominees: tuple[Nominee, ...]

    def resolutions(self) -> dict[int, list[Nominee]]:
        """The nominees of each resolution, in ascending order of resolution."""
        return {
            resolution: [nominee for nominee in self.nominees if nominee.resolution == resolution]
            for resolution in sorted({nominee.resolution for nominee in self.nominees})
        }

    def trainings(self) -> int:
        """Number of trainings if none fails."""
        return len(self.nominees) + len(self.resolutions()) * (self.seeds - 1)


@dataclass(frozen=True)
class TrainedFinalist:
    """The finalist of a resolution with its complete trainings, one per seed."""

    nominee: Nominee
    runs: tuple[FrozenTrial, ...]


def parse_plan(plan: dict[str, Any]) -> ConfirmationPlan:
    """The plan from its stored form."""
    return ConfirmationPlan(seeds=plan["seeds"], nominees=tuple(Nominee(**nominee) for nominee in plan["nominees"]))


def missing_trainings(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> Iterator[tuple[Nominee, int]]:
    """Trainings to enqueue, as (nominee, repeat): one of each nominee, then one per seed of each finalist.

    A training that diverged or failed is replaced by a training with another seed.
    """
    runs = _TrialsByNominee(trials)
    for nominee, count in _wanted(plan, runs):
        last = max((run.user_attrs["repeat"] for run in runs.of(nominee)), default=0)
        for repeat in range(last + 1, last + 1 + count - len(runs.active(nominee))):
            yield nominee, repeat


def surplus_trainings(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Waiting trainings that the plan does not contain, for instance after a smaller number of seeds."""
    runs = _TrialsByNominee(trials)
    wanted = {nominee.number: count for nominee, count in _wanted(plan, runs)}
    kept = {run._trial_id for nominee in plan.nominees for run in runs.active(nominee)[: wanted.get(nominee.number, 0)]}
    return [trial for trial in trials if trial.state is TrialState.WAITING and trial._trial_id not in kept]


def check_retrainable(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> None:
    """UsageError where every nominee of a resolution has reached the largest number of failures."""
    runs = _TrialsByNominee(trials)
    for resolution, nominees in plan.resolutions().items():
        if not runs.retrainable(nominees):
            reason = next((run.user_attrs.get("reason") for run in runs.of(nominees[0])[::-1]), "no reason is known")
            raise UsageError(
                f"no nominee at {resolution} px could be retrained ({reason}): leave that resolution out of [confirm] "
                "resolutions, or widen the search"
            )


def find_finalists(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> dict[int, TrainedFinalist]:
    """The finalist of each resolution whose trainings are all complete."""
    runs = _TrialsByNominee(trials)
    chosen = {}
    for resolution, nominees in plan.resolutions().items():
        finalist = _finalist(nominees, runs)
        complete = runs.complete(finalist)[: plan.seeds] if finalist else []
        if finalist and len(complete) == plan.seeds:
            chosen[resolution] = TrainedFinalist(finalist, tuple(complete))
    return chosen


def _wanted(plan: ConfirmationPlan, runs: "_TrialsByNominee") -> Iterator[tuple[Nominee, int]]:
    """The number of trainings of each nominee: 1, or one per seed for a finalist."""
    for nominees in plan.resolutions().values():
        finalist = _finalist(nominees, runs)
        if finalist:
            yield finalist, plan.seeds
        else:
            yield from ((nominee, 1) for nominee in runs.retrainable(nominees))


def _finalist(nominees: list[Nominee], runs: "_TrialsByNominee") -> Nominee | None:
    """The nominee with the highest mean validation AUC of its trial in the search and its first retraining.

    None until every retrainable nominee is retrained, or where no nominee is retrainable.
    """
    retrainable = runs.retrainable(nominees)
    first = {nominee.number: runs.complete(nominee)[:1] for nominee in retrainable}
    if not retrainable or not all(first.values()):
        return None

    def mean_auc(nominee: Nominee) -> float:
        (run,) = first[nominee.number]
        assert run.value is not None
        return (nominee.auc + run.value) / 2

    return max(retrainable, key=lambda nominee: (mean_auc(nominee), -nominee.number))


class _TrialsByNominee:
    """Trials of a confirm study by nominee, ordered by repeat. Only the last attempt at a training is included."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._by_nominee: dict[int, list[FrozenTrial]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.user_attrs.get("repeat", 0), trial.number)):
            if "nominee" in trial.user_attrs and "requeued" not in trial.user_attrs:
                self._by_nominee.setdefault(trial.user_attrs["nominee"], []).append(trial)

    def of(self, nominee: Nominee) -> list[FrozenTrial]:
        return self._by_nominee.get(nominee.number, [])

    def complete(self, nominee: Nominee) -> list[FrozenTrial]:
        return [run for run in self.of(nominee) if run.state is TrialState.COMPLETE]

    def active(self, nominee: Nominee) -> list[FrozenTrial]:
        """The nominee's complete, running and waiting trainings, in this order."""
        order = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
        return sorted((run for run in self.of(nominee) if run.state in order), key=lambda run: order.index(run.state))

    def retrainable(self, nominees: list[Nominee]) -> list[Nominee]:
        """The nominees with fewer than the largest number of failures."""

        def failures(nominee: Nominee) -> int:
            return sum(run.state in (TrialState.PRUNED, TrialState.FAIL) for run in self.of(nominee))

        return [nominee for nominee in nominees if failures(nominee) < _MAX_FAILURES]
