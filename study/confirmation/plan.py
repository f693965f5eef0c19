"""Plan of a label's confirmation: which trainings are missing or surplus, and which nominee is the finalist."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from acuity.objectives.statistics.enough_folds import ValidationAucs, clearly_loses, have_power
from acuity.study.confirmation.nomination import Nominee
from acuity.study.dataset.design import Design
from acuity.study.errors import UsageError

_MAX_FAILURES = 3
"""A nominee with this many diverged or failed trainings is not retrained again."""


@dataclass(frozen=True)
class ConfirmationPlan:
    """The nominees and the design of one label's confirmation, stored with the confirm study for all workers."""

    design: Design
    margin: float
    nominees: tuple[Nominee, ...]
    patients: tuple[tuple[int, int], ...]
    """Numbers of positive and negative patients of each fold. Empty if held-out."""
    forgiven: tuple[int, ...] = ()
    """Numbers of failed trainings that do not count."""

    def resolutions(self) -> dict[int, list[Nominee]]:
        """The nominees of each resolution, in ascending order of resolution."""
        return {
            resolution: [nominee for nominee in self.nominees if nominee.resolution == resolution]
            for resolution in sorted({nominee.resolution for nominee in self.nominees})
        }

    def trainings(self) -> int:
        """The largest number of trainings if none fails."""
        return sum(len(nominees) + self.design.networks - 1 for nominees in self.resolutions().values())

    def trainings_needed(self, trials: Sequence[FrozenTrial]) -> int:
        """Number of complete trainings and of those still needed, if none fails and no result changes the need."""
        runs = _TrialsByNominee(self, trials)
        return _count_complete(self, runs) + _count_incomplete(self, runs, _find_need(self, runs))


@dataclass(frozen=True)
class Need:
    """The trainings that can matter for the verdict, as far as is known."""

    resolutions: tuple[int, ...]
    """Ascending."""
    networks: int
    """Number of networks of the finalist of each of these resolutions."""


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
        patients=tuple((positive, negative) for positive, negative in plan["patients"]),
        nominees=tuple(Nominee(**nominee) for nominee in plan["nominees"]),
        forgiven=tuple(plan["forgiven"]),
    )


def missing_trainings(
    plan: ConfirmationPlan, trials: Sequence[FrozenTrial]
) -> Iterator[tuple[Nominee, int | None, int]]:
    """Trainings to enqueue, as (nominee, fold, repeat), the largest resolution first.

    The first training of each nominee comes first, then those of each finalist. A training that diverged or failed is
    replaced by a training with another seed.
    """
    runs = _TrialsByNominee(plan, trials)
    for nominee, fold, count in _wanted(plan, runs):
        last = max((run.user_attrs["repeat"] for run in runs.of(nominee, fold)), default=0)
        for repeat in range(last + 1, last + 1 + count - len(runs.active(nominee, fold))):
            yield nominee, fold, repeat


def surplus_trainings(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Waiting trainings that the plan does not contain, for instance after a smaller number of seeds."""
    runs = _TrialsByNominee(plan, trials)
    kept = {run._trial_id for nominee, fold, count in _wanted(plan, runs) for run in runs.active(nominee, fold)[:count]}
    return [trial for trial in trials if trial.state is TrialState.WAITING and trial._trial_id not in kept]


def check_retrainable(plan: ConfirmationPlan, trials: Sequence[FrozenTrial], *, label: str) -> None:
    """UsageError where every nominee of a needed resolution has reached the largest number of failures."""
    runs = _TrialsByNominee(plan, trials)
    needed = _find_need(plan, runs).resolutions
    for resolution, nominees in plan.resolutions().items():
        if resolution in needed and not runs.retrainable(nominees):
            last = max(runs.failures(nominees[0]), key=lambda run: run.number)
            again = "remove the cause and confirm again, or " if last.state is TrialState.FAIL else ""
            raise UsageError(
                f"no nominee of {label} at {resolution} px could be retrained "
                f"({last.user_attrs.get('reason', 'no reason is known')}): {again}raise [confirm] nominees, leave that "
                "resolution out of [confirm] resolutions, or widen the search"
            )


def forgive_failures(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> ConfirmationPlan:
    """The plan that retrains nominees again at resolutions where every nominee has failed too often.

    The user may have removed the cause. A training that diverged counts: it has no cause outside the training. Where a
    nominee is left, it stays the finalist.
    """
    runs = _TrialsByNominee(plan, trials)
    lost = [each for nominees in plan.resolutions().values() if not runs.retrainable(nominees) for each in nominees]
    failed = [run.number for nominee in lost for run in runs.failures(nominee) if run.state is TrialState.FAIL]
    return replace(plan, forgiven=tuple(failed))


def find_finalists(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> dict[int, TrainedFinalist]:
    """The finalist of each needed resolution whose trainings are all complete."""
    runs, resolutions = _TrialsByNominee(plan, trials), plan.resolutions()
    need = _find_need(plan, runs)
    return {
        resolution: finalist
        for resolution in need.resolutions
        if (finalist := _trained(plan, resolutions[resolution], runs, networks=need.networks)) is not None
    }


def count_done(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> int:
    """Number of complete trainings among `ConfirmationPlan.trainings`."""
    runs, need = _TrialsByNominee(plan, trials), Need(tuple(plan.resolutions()), plan.design.networks)
    return min(_count_complete(plan, runs), plan.trainings() - _count_incomplete(plan, runs, need))


def find_need(plan: ConfirmationPlan, trials: Sequence[FrozenTrial]) -> Need:
    """The resolutions and the number of networks of each that can matter for the verdict.

    No test patient is read for this: it follows from validation AUCs and numbers of patients.

    Resolutions: the verdict's tests descend to the first resolution that fails. If validation patients show clearly
    that a resolution loses more than the margin against a larger one, no smaller resolution is needed, unless one of
    them had a higher AUC in the search and so may become the reference.

    Networks of a cross-fitted design: the folds are trained one after another. Enough are trained once every test that
    is open would have 80 % power if both resolutions were equally good, with these networks and the patients of these
    folds. The tests of a resolution that clearly loses are not open. Stopping at a small variance over seeds makes the
    tests err a little more often. With at least 3 of 4 folds they hold their level, with at least 2 they err in up to 6
    % (benchmarks/validity/verdict_errors.py). The idea is that of Stein's two-stage test (Ann Math Stat
    1945;16:243-258).
    """
    return _find_need(plan, _TrialsByNominee(plan, trials))


def _find_need(plan: ConfirmationPlan, runs: "_TrialsByNominee") -> Need:
    resolutions, design = plan.resolutions(), plan.design
    needed = tuple(resolutions)
    for networks in range(design.min_networks, design.networks):
        needed = _needed_resolutions(plan, runs, needed, networks=networks)
        finalists = [_trained(plan, resolutions[resolution], runs, networks=networks) for resolution in needed]
        trained = [_on_validation(finalist) for finalist in finalists if finalist is not None]
        tested = plan.patients[:networks]  # of the folds in `Design.networks_by_fold`
        patients = sum(positive for positive, _ in tested), sum(negative for _, negative in tested)
        if len(trained) < len(needed) or have_power(trained, patients=patients, margin=plan.margin):
            return Need(needed, networks)
    return Need(_needed_resolutions(plan, runs, needed, networks=design.networks), design.networks)


def _needed_resolutions(
    plan: ConfirmationPlan, runs: "_TrialsByNominee", among: Sequence[int], *, networks: int
) -> tuple[int, ...]:
    """The needed resolutions of some, by finalists with this number of networks, ascending."""
    resolutions = plan.resolutions()
    descending = sorted(among, reverse=True)
    larger: list[ValidationAucs] = []
    for number, resolution in enumerate(descending):
        finalist = _trained(plan, resolutions[resolution], runs, networks=networks)
        if finalist is None:
            break
        smaller = [nominee for each in descending[number + 1 :] for nominee in resolutions[each]]
        best = max(nominee.auc for each in descending[: number + 1] for nominee in resolutions[each])
        aucs = _on_validation(finalist)
        if any(clearly_loses(aucs, each, margin=plan.margin) for each in larger) and all(
            nominee.auc < best for nominee in smaller
        ):
            return tuple(sorted(descending[: number + 1]))
        larger.append(aucs)
    return tuple(sorted(descending))


def _on_validation(finalist: TrainedFinalist) -> ValidationAucs:
    variances = [run.user_attrs["auc_se"] ** 2 for run in finalist.runs]  # DeLong's
    return ValidationAucs(np.array([run.value for run in finalist.runs], dtype=np.float64), float(np.mean(variances)))


def _trained(
    plan: ConfirmationPlan, nominees: list[Nominee], runs: "_TrialsByNominee", *, networks: int
) -> TrainedFinalist | None:
    """The finalist with this number of trainings. None where one is missing."""
    finalist = _finalist(plan, nominees, runs)
    if finalist is None:
        return None
    by_fold = plan.design.networks_by_fold(networks)
    complete = [run for fold, count in by_fold.items() for run in runs.complete(finalist, fold)[:count]]
    return TrainedFinalist(finalist, tuple(complete)) if len(complete) == networks else None


def _wanted(plan: ConfirmationPlan, runs: "_TrialsByNominee") -> Iterator[tuple[Nominee, int | None, int]]:
    """The number of trainings of each nominee and fold: one in all, or the needed number for a finalist."""
    design, need = plan.design, _find_need(plan, runs)
    first_fold = next(design.fold_numbers())
    resolutions = {resolution: plan.resolutions()[resolution] for resolution in reversed(need.resolutions)}
    finalists = {resolution: _finalist(plan, nominees, runs) for resolution, nominees in resolutions.items()}
    for resolution, nominees in resolutions.items():
        finalist = finalists[resolution]
        if finalist is not None:
            yield from ((finalist, fold, count) for fold, count in design.networks_by_fold(need.networks).items())
        else:
            yield from ((nominee, first_fold, 1) for nominee in runs.retrainable(nominees))


def _count_complete(plan: ConfirmationPlan, runs: "_TrialsByNominee") -> int:
    """Number of complete trainings of the plan's nominees."""
    return sum(len(runs.complete(nominee, fold)) for nominee in plan.nominees for fold in plan.design.fold_numbers())


def _count_incomplete(plan: ConfirmationPlan, runs: "_TrialsByNominee", need: Need) -> int:
    """Number of the needed trainings that are not complete. None where no nominee is retrainable."""
    design, incomplete = plan.design, 0
    for resolution in need.resolutions:
        nominees = plan.resolutions()[resolution]
        retrainable, finalist = runs.retrainable(nominees), _finalist(plan, nominees, runs)
        if finalist is not None:
            by_fold = design.networks_by_fold(need.networks)
            incomplete += sum(max(0, count - len(runs.complete(finalist, fold))) for fold, count in by_fold.items())
        elif retrainable:
            first_fold = next(design.fold_numbers())
            incomplete += sum(not runs.complete(nominee, first_fold) for nominee in retrainable) + need.networks - 1
    return incomplete


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
        self._forgiven = frozenset(plan.forgiven)
        self._runs: dict[tuple[int, int | None], list[FrozenTrial]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.user_attrs.get("repeat", 0), trial.number)):
            attributes = trial.user_attrs
            of_design = attributes.get("folds_sha256") == plan.design.folds_sha256
            if "nominee" in attributes and "requeued" not in attributes and of_design:
                self._runs.setdefault((attributes["nominee"], attributes.get("fold")), []).append(trial)

    def of(self, nominee: Nominee, fold: int | None) -> list[FrozenTrial]:
        return self._runs.get((nominee.number, fold), [])

    def complete(self, nominee: Nominee, fold: int | None) -> list[FrozenTrial]:
        return [run for run in self.of(nominee, fold) if run.state is TrialState.COMPLETE]

    def active(self, nominee: Nominee, fold: int | None) -> list[FrozenTrial]:
        """The nominee's complete, running and waiting trainings, in this order."""
        order = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
        found = (run for run in self.of(nominee, fold) if run.state in order)
        return sorted(found, key=lambda run: order.index(run.state))

    def failures(self, nominee: Nominee) -> list[FrozenTrial]:
        """The nominee's diverged and failed trainings that count."""
        trainings = (run for (number, _), runs in self._runs.items() if number == nominee.number for run in runs)
        ended = (run for run in trainings if run.state in (TrialState.PRUNED, TrialState.FAIL))
        return [run for run in ended if run.number not in self._forgiven]

    def retrainable(self, nominees: list[Nominee]) -> list[Nominee]:
        """The nominees with fewer than the largest number of failures."""
        return [nominee for nominee in nominees if len(self.failures(nominee)) < _MAX_FAILURES]
