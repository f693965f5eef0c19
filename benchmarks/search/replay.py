"""Replays a search on surrogates of recorded curves: simulated workers pay recorded seconds, epoch by epoch."""

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from optuna.trial import FrozenTrial, create_trial
from scipy.special import expit
from surrogate import Configuration, Surrogate

from acuity.objectives.statistics.intervals import hanley_mcneil_variance
from acuity.study.confirmation.nomination import Nominee, is_near_best
from acuity.study.confirmation.plan import ConfirmationPlan, find_finalists, missing_trainings
from acuity.study.dataset.design import Design


class Strategy(Protocol):
    """A search for several labels together. Trials are numbered over all labels."""

    def ask(self) -> tuple[int, str, Configuration] | None:
        """Number, label and configuration of the next trial; None if there are no more."""
        ...

    def report(self, number: int, epoch: int, auc: float) -> bool:
        """Report the AUC after an epoch, counted from 1. True prunes the trial."""
        ...

    def tell(self, number: int, auc: float | None) -> None:
        """Tell the trial's value, or None if it was pruned."""
        ...


@dataclass(frozen=True)
class Confirmation:
    """How a label is confirmed."""

    design: Design
    nominees: int = 1
    """Configurations of each resolution that are trained."""
    leaves_out: bool = True
    """Whether the resolutions below one that clearly loses on validation patients are left out."""

    @property
    def patients(self) -> float:
        """Training patients of one training, in parts of those of the search.

        Of all patients 64 % are training and 16 % validation patients. A cross-fitted network is trained on the
        patients outside validation, without one fold.
        """
        folds = self.design.folds
        return 1.0 if folds is None else 0.84 * (1 - 1 / folds) / 0.64


def _cross_fitted(folds: int, *, min_folds: int) -> Confirmation:
    return Confirmation(Design("cross-fitted", folds=folds, min_folds=min_folds, folds_sha256="of the folds"))


CONFIRMATIONS = {
    "before": Confirmation(Design("held-out", seeds=5), nominees=3, leaves_out=False),
    "3_to_4_folds": _cross_fitted(4, min_folds=3),
    "4_folds": _cross_fitted(4, min_folds=4),
    "2_to_4_folds": _cross_fitted(4, min_folds=2),
    "3_folds": _cross_fitted(3, min_folds=3),
}
"""3 nominees and 5 seeds on held-out patients; the default; all of its folds; at least two; three folds."""
_MARGIN = 0.02
_NO_MARGIN = 0.499
"""A loss is never clearly above it."""
_TEST_PATIENTS = (10**6, 10**7)
"""Positive and negative patients of a fold: as if test patients were unlimited."""
_VALIDATION_PATIENTS = (60, 340)
"""Positive and negative, roughly as in the recorded image sets."""


@dataclass
class Trial:
    """A trial that has ended."""

    label: str
    configuration: Configuration
    epoch_aucs: list[float]
    spent: float
    """CPU seconds of all workers until the trial ended, running trials included."""
    complete: bool

    @property
    def auc(self) -> float:
        return self.epoch_aucs[-1]


@dataclass
class _Running:
    number: int
    label: str
    configuration: Configuration
    curve: list[float]
    epoch_seconds: float
    seen: int = 0
    aucs: list[float] = field(default_factory=list)


def replay(
    strategy: Strategy, surrogates: Mapping[str, Surrogate], *, workers: int, most_cost: float, rng: np.random.Generator
) -> list[Trial]:
    """Run until the workers together have spent most_cost CPU seconds; returns the trials in the order they ended."""
    ended: list[Trial] = []
    clock: list[tuple[float, int, _Running]] = []
    turn = 0

    def start(now: float) -> None:
        nonlocal turn
        asked = strategy.ask()
        if asked is None:
            return
        number, label, configuration = asked
        curve, epoch_seconds = draw(surrogates[label], configuration, rng)
        running = _Running(number, label, configuration, curve, epoch_seconds)
        turn += 1
        heapq.heappush(clock, (now + epoch_seconds, turn, running))

    for _ in range(workers):
        start(0.0)
    while clock:
        now, _, running = heapq.heappop(clock)
        if now * workers > most_cost:
            break
        running.seen += 1
        running.aucs.append(running.curve[running.seen - 1])
        stop = strategy.report(running.number, running.seen, running.aucs[-1])
        whole = running.seen == len(running.curve)
        if stop or whole:
            ended.append(Trial(running.label, running.configuration, running.aucs, now * workers, complete=whole))
            strategy.tell(running.number, running.aucs[-1] if whole else None)
            start(now)
        else:
            turn += 1
            heapq.heappush(clock, (now + running.epoch_seconds, turn, running))
    return ended


def draw(surrogate: Surrogate, configuration: Configuration, rng: np.random.Generator) -> tuple[list[float], float]:
    """Draw one training: validation AUC after each epoch, and seconds of one epoch."""
    mean = surrogate.mean([configuration])[0]
    logits = mean + surrogate.noise(float(mean[-2]), rng)
    return expit(logits[:-1]).tolist(), float(surrogate.epoch_seconds([configuration])[0])


def confirm(
    trials: list[Trial],
    surrogate: Surrogate,
    *,
    rng: np.random.Generator,
    confirmation: Confirmation,
    workers: int = 1,
) -> tuple[dict[int, Configuration], int, float]:
    """Confirm as `acuity confirm` does; returns each resolution's finalist, the reference and the cost in CPU seconds.

    Confirmed are the smallest and the largest resolution, and those that `is_near_best`. Which trainings follow is
    decided by Acuity's plan of a confirmation, whenever the trainings that the workers took are finished. The reference
    has the highest mean validation AUC over its trainings.
    """
    nominees, configurations = _nominate(trials, count=confirmation.nominees)
    plan = ConfirmationPlan(
        confirmation.design,
        margin=_MARGIN if confirmation.leaves_out else _NO_MARGIN,
        nominees=nominees,
        patients=(_TEST_PATIENTS,) * confirmation.design.networks,
    )
    cost, trained = 0.0, list[FrozenTrial]()
    while wanted := list(itertools.islice(missing_trainings(plan, trained), workers)):
        for nominee, fold, repeat in wanted:
            curve, seconds = draw(surrogate, configurations[nominee.number], rng)
            cost += seconds * len(curve) * confirmation.patients
            trained.append(_training(plan, nominee, fold, repeat, auc=curve[-1]))
    finalists = find_finalists(plan, trained)
    means = {
        resolution: float(np.mean([run.value for run in finalist.runs])) for resolution, finalist in finalists.items()
    }
    return (
        {resolution: configurations[finalist.nominee.number] for resolution, finalist in finalists.items()},
        max(means, key=means.__getitem__),
        cost,
    )


def _nominate(trials: list[Trial], *, count: int) -> tuple[tuple[Nominee, ...], list[Configuration]]:
    """The nominees of each confirmed resolution, and the configuration of each nominee's number."""
    best: dict[int, list[Trial]] = {}
    for trial in sorted((trial for trial in trials if trial.complete), key=lambda trial: -trial.auc):
        best.setdefault(trial.configuration.resolution, []).append(trial)
    top = _auc_and_se(max(of_resolution[0].auc for of_resolution in best.values()))
    near_best = {at for at, of_resolution in best.items() if is_near_best(_auc_and_se(of_resolution[0].auc), top)}
    chosen = [trial for at in sorted(near_best | {min(best), max(best)}) for trial in best[at][:count]]
    nominees = tuple(
        Nominee(number, trial.configuration.resolution, trial.auc, {}, 16, 16, seconds=1.0)
        for number, trial in enumerate(chosen)
    )
    return nominees, [trial.configuration for trial in chosen]


def _training(plan: ConfirmationPlan, nominee: Nominee, fold: int | None, repeat: int, *, auc: float) -> FrozenTrial:
    attributes = {
        "nominee": nominee.number,
        "repeat": repeat,
        "folds_sha256": plan.design.folds_sha256,
        "auc_se": _auc_and_se(auc)[1],
    }
    if fold is not None:
        attributes["fold"] = fold
    return create_trial(value=auc, user_attrs=attributes)


def _auc_and_se(auc: float) -> tuple[float, float]:
    positive, negative = _VALIDATION_PATIENTS
    return auc, math.sqrt(hanley_mcneil_variance(auc, positive_patients=positive, negative_patients=negative))
