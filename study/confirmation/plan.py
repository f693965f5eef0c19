"""Which trainings a label's confirmation needs, worked out from its plan and its trials; reads no database."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from acuity.study.confirmation.nomination import Nominee
from acuity.study.errors import UsageError

_MOST_FAILURES = 3
"""A nominee with this many diverged or failed trainings is dropped."""


@dataclass(frozen=True)
class Plan:
    """The trainings of a label's confirm study. It is stored with the study, where every worker reads it."""

    seeds: int
    nominees: tuple[Nominee, ...]

    def resolutions(self) -> dict[int, list[Nominee]]:
        """The nominees of each resolution, ascending."""
        return {
            resolution: [nominee for nominee in self.nominees if nominee.resolution == resolution]
            for resolution in sorted({nominee.resolution for nominee in self.nominees})
        }

    def trainings(self) -> int:
        """Number of trainings if none fails."""
        return len(self.nominees) + len(self.resolutions()) * (self.seeds - 1)


@dataclass(frozen=True)
class Chosen:
    """A resolution's finalist with its trainings, in the order of their seeds."""

    nominee: Nominee
    runs: tuple[FrozenTrial, ...]


def plan_from_table(plan: dict[str, Any]) -> Plan:
    """The plan in its stored form."""
    return Plan(seeds=plan["seeds"], nominees=tuple(Nominee(**nominee) for nominee in plan["nominees"]))


def missing_runs(plan: Plan, trials: Sequence[FrozenTrial]) -> Iterator[tuple[Nominee, int]]:
    """Trainings still to be enqueued, as (nominee, repeat): one of each nominee, all seeds of a finalist.

    A training that diverged or failed is replaced by one of another seed.
    """
    runs = _Runs(trials)
    for nominee, count in _wanted(plan, runs):
        last = max((run.user_attrs["repeat"] for run in runs.of(nominee)), default=0)
        for repeat in range(last + 1, last + 1 + count - len(runs.alive(nominee))):
            yield nominee, repeat


def unwanted_runs(plan: Plan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Waiting trainings that the plan no longer contains: of more seeds, or of a former nominee."""
    runs = _Runs(trials)
    wanted = {nominee.number: count for nominee, count in _wanted(plan, runs)}
    kept = {run._trial_id for nominee in plan.nominees for run in runs.alive(nominee)[: wanted.get(nominee.number, 0)]}
    return [trial for trial in trials if trial.state is TrialState.WAITING and trial._trial_id not in kept]


def check_retrainable(plan: Plan, trials: Sequence[FrozenTrial]) -> None:
    """UsageError where every nominee of a resolution has diverged or failed too often."""
    runs = _Runs(trials)
    for resolution, nominees in plan.resolutions().items():
        if not runs.left_of(nominees):
            reason = next((run.user_attrs.get("reason") for run in runs.of(nominees[0])[::-1]), "no reason is known")
            raise UsageError(
                f"no nominee at {resolution} px could be retrained ({reason}): leave that resolution out of [confirm] "
                "resolutions, or widen the search"
            )


def _wanted(plan: Plan, runs: "_Runs") -> Iterator[tuple[Nominee, int]]:
    """(nominee, number of trainings): one of each nominee, all seeds of a finalist."""
    for nominees in plan.resolutions().values():
        finalist = _finalist(nominees, runs)
        if finalist:
            yield finalist, plan.seeds
        else:
            yield from ((nominee, 1) for nominee in runs.left_of(nominees))


def finalists(plan: Plan, trials: Sequence[FrozenTrial]) -> dict[int, Chosen]:
    """The finalist of each resolution that has all its trainings."""
    runs = _Runs(trials)
    chosen = {}
    for resolution, nominees in plan.resolutions().items():
        finalist = _finalist(nominees, runs)
        complete = runs.complete(finalist)[: plan.seeds] if finalist else []
        if finalist and len(complete) == plan.seeds:
            chosen[resolution] = Chosen(finalist, tuple(complete))
    return chosen


def _finalist(nominees: list[Nominee], runs: "_Runs") -> Nominee | None:
    """The nominee whose search and first retraining have the best mean validation AUC.

    None before all that are left are retrained, or where none is left.
    """
    left = runs.left_of(nominees)
    first = {nominee.number: runs.complete(nominee)[:1] for nominee in left}
    if not left or not all(first.values()):
        return None

    def mean_auc(nominee: Nominee) -> float:
        (run,) = first[nominee.number]
        assert run.value is not None
        return (nominee.auc + run.value) / 2

    return max(left, key=lambda nominee: (mean_auc(nominee), -nominee.number))


class _Runs:
    """A confirm study's trials by nominee; all attempts at one training count once."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._by_nominee: dict[int, list[FrozenTrial]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.user_attrs.get("repeat", 0), trial.number)):
            if "nominee" in trial.user_attrs and "requeued" not in trial.user_attrs:
                self._by_nominee.setdefault(trial.user_attrs["nominee"], []).append(trial)

    def of(self, nominee: Nominee) -> list[FrozenTrial]:
        return self._by_nominee.get(nominee.number, [])

    def complete(self, nominee: Nominee) -> list[FrozenTrial]:
        return [run for run in self.of(nominee) if run.state is TrialState.COMPLETE]

    def alive(self, nominee: Nominee) -> list[FrozenTrial]:
        """Trainings that are complete, running or waiting, in this order."""
        order = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
        return sorted((run for run in self.of(nominee) if run.state in order), key=lambda run: order.index(run.state))

    def left_of(self, nominees: list[Nominee]) -> list[Nominee]:
        def failures(nominee: Nominee) -> int:
            return sum(run.state in (TrialState.PRUNED, TrialState.FAIL) for run in self.of(nominee))

        return [nominee for nominee in nominees if failures(nominee) < _MOST_FAILURES]
