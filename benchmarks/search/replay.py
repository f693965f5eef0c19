"""Replays a search on surrogates of recorded curves: simulated workers pay recorded seconds, epoch by epoch."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.special import expit
from surrogate import Configuration, Surrogate

from acuity.study.confirmation.nomination import MAX_AUC_GAP


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
    """How a resolution is confirmed."""

    nominees: int
    """Its best trials that are trained once more. The finalist has the highest mean of both AUCs."""
    trainings: int
    """Trainings of the finalist, its retraining as a nominee included."""
    patients: float = 1.0
    """Training patients of one training, in parts of those of the search."""


# Of all patients 64 % are training and 16 % validation patients. A cross-fitted network is trained on the patients
# outside validation, without one of K folds.
CONFIRMATIONS = {
    "before": Confirmation(nominees=3, trainings=5),
    "held_out": Confirmation(nominees=1, trainings=5),
    "5_folds": Confirmation(nominees=1, trainings=5, patients=0.84 * 4 / 5 / 0.64),
    "3_folds": Confirmation(nominees=1, trainings=3, patients=0.84 * 2 / 3 / 0.64),
}
"""3 nominees and 5 seeds on held-out patients, the same with 1 nominee, and one network of each fold, cross-fitted."""


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
    trials: list[Trial], surrogate: Surrogate, *, rng: np.random.Generator, confirmation: Confirmation
) -> tuple[dict[int, Configuration], int, float]:
    """Confirm as `acuity confirm` does; returns each resolution's finalist, the reference and the cost in CPU seconds.

    Confirmed are the resolutions within MAX_AUC_GAP of the best AUC, the smallest and the largest. The reference has
    the highest mean validation AUC over its trainings.
    """
    best: dict[int, list[Trial]] = {}
    for trial in sorted((trial for trial in trials if trial.complete), key=lambda trial: -trial.auc):
        best.setdefault(trial.configuration.resolution, []).append(trial)
    top = max(of_resolution[0].auc for of_resolution in best.values())
    near_best = {at for at, of_resolution in best.items() if of_resolution[0].auc >= top - MAX_AUC_GAP}
    cost, finalists, means = 0.0, {}, {}

    def train(configuration: Configuration) -> float:
        nonlocal cost
        curve, seconds = draw(surrogate, configuration, rng)
        cost += seconds * len(curve) * confirmation.patients
        return curve[-1]

    for resolution in sorted(near_best | {min(best), max(best)}):
        nominees = best[resolution][: confirmation.nominees]
        first = [train(trial.configuration) for trial in nominees]
        chosen = max(range(len(nominees)), key=lambda i: nominees[i].auc + first[i])
        finalists[resolution] = nominees[chosen].configuration
        others = [train(finalists[resolution]) for _ in range(confirmation.trainings - 1)]
        means[resolution] = float(np.mean([first[chosen], *others]))
    return finalists, max(means, key=means.__getitem__), cost
