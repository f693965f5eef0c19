"""Replays a search on surrogates of recorded curves: simulated workers pay recorded seconds, epoch by epoch."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.special import expit
from surrogate import Configuration, Surrogate

from acuity.study.config.schema import Confirm
from acuity.study.confirmation.nomination import MAX_AUC_GAP, NOMINEES_PER_RESOLUTION


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
    trials: list[Trial], surrogate: Surrogate, *, rng: np.random.Generator, trainings: int = 1
) -> tuple[dict[int, Configuration], int, float]:
    """Confirm as `acuity confirm` does; returns each resolution's finalist, the reference and the cost in CPU seconds.

    Confirmed are the resolutions within MAX_AUC_GAP of the best AUC, the smallest and the largest. At each of them the
    NOMINEES_PER_RESOLUTION best trials by validation AUC are trained once more. The finalist has the highest mean of
    both AUCs, and is trained until it has the default number of seeds. trainings = 2 trains nominees twice and leaves
    the search's AUC out of the mean.
    """
    best: dict[int, list[Trial]] = {}
    for trial in sorted((trial for trial in trials if trial.complete), key=lambda trial: -trial.auc):
        best.setdefault(trial.configuration.resolution, []).append(trial)
    top = max(of_resolution[0].auc for of_resolution in best.values())
    near_best = {at for at, of_resolution in best.items() if of_resolution[0].auc >= top - MAX_AUC_GAP}
    chosen = near_best | {min(best), max(best)}
    cost, finalists, means = 0.0, {}, {}
    for resolution in sorted(chosen):
        candidates = []
        for trial in best[resolution][:NOMINEES_PER_RESOLUTION]:
            aucs = []
            for _ in range(trainings):
                curve, seconds = draw(surrogate, trial.configuration, rng)
                aucs.append(curve[-1])
                cost += seconds * len(curve)
            seen = [trial.auc, *aucs] if trainings == 1 else aucs
            candidates.append((float(np.mean(seen)), aucs, trial.configuration))
        _, aucs, configuration = max(candidates, key=lambda candidate: candidate[0])
        for _ in range(Confirm().seeds - trainings):
            curve, seconds = draw(surrogate, configuration, rng)
            aucs.append(curve[-1])
            cost += seconds * len(curve)
        finalists[resolution], means[resolution] = configuration, float(np.mean(aucs))
    return finalists, max(means, key=means.__getitem__), cost
