"""The strategies that `benchmarks/search/search.py` compares: one space, each with its usual settings."""

import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from record_curves import ARCHITECTURES, BATCH_SIZES, CURVES, EPOCHS, LEARNING_RATES, RESOLUTIONS
from replay import Strategy, replay
from surrogate import Configuration, Surrogate, fit

from acuity.study.config.schema import Data, Experiment, Search, Training
from acuity.study.search.initial_design import InitialTrial, choose_parameters, plan_initial_trials
from acuity.study.search.recipes import EndedTrial, own_recipes, recipe_of
from acuity.study.search.space import make_pruner, make_sampler, prunable_epochs, suggest

RATES = (LEARNING_RATES[0], LEARNING_RATES[-1])
EXPONENTS = (BATCH_SIZES[0].bit_length() - 1, BATCH_SIZES[-1].bit_length() - 1)
_EVEN = 6
ANOTHER, AFTER_ANOTHER = "design", "acuity, after another"
"""Image set of the earlier experiment, and the strategy that learns from it."""


class OptunaStudies:
    """One study in memory per label. The label with the fewest trials is asked next, as Acuity's workers do."""

    def __init__(self, labels: Sequence[str], make: Callable[[int], tuple[BaseSampler, BasePruner]]) -> None:
        self.studies = {}
        for position, label in enumerate(labels):
            sampler, pruner = make(position)
            self.studies[label] = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self.asked = dict.fromkeys(labels, 0)
        self.running: dict[int, tuple[str, optuna.Trial]] = {}

    def ask(self) -> tuple[int, str, Configuration] | None:
        label = min(self.asked, key=self.asked.__getitem__)
        number = sum(self.asked.values())
        self.asked[label] += 1
        trial = self.start(label)
        self.running[number] = (label, trial)
        return number, label, self.configuration(trial)

    def start(self, label: str) -> optuna.Trial:
        return self.studies[label].ask()

    def configuration(self, trial: optuna.Trial) -> Configuration:
        return Configuration(
            resolution=trial.suggest_categorical("resolution", RESOLUTIONS),
            architecture=trial.suggest_categorical("architecture", ARCHITECTURES),
            learning_rate=trial.suggest_float("learning_rate", *RATES, log=True),
            batch_size=2 ** trial.suggest_int("batch_size_exponent", *EXPONENTS),
        )

    def report(self, number: int, epoch: int, auc: float) -> bool:
        _, trial = self.running[number]
        trial.report(auc, epoch)
        return epoch < EPOCHS and trial.should_prune()

    def tell(self, number: int, auc: float | None) -> None:
        label, trial = self.running.pop(number)
        if auc is None:
            self.studies[label].tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.studies[label].tell(trial, auc)


class Acuity(OptunaStudies):
    """Acuity's initial trials, sampler, pruner and pruning epochs."""

    def __init__(self, experiment: Experiment, *, workers: int, learnt: Sequence[EndedTrial] = ()) -> None:
        seed, labels = experiment.search.seed, experiment.labels
        # A study rarely has more trials running than its share of the workers.
        pruner = make_pruner(experiment, running=-(-workers // len(labels)))
        super().__init__(labels, lambda position: (make_sampler(seed + position), pruner))
        self.experiment = experiment
        self.tried = list(learnt)
        self.waiting = {label: self.first_trials(label) for label in labels}
        self.given: dict[str, list[InitialTrial]] = {label: [] for label in labels}
        self.first: set[int] = set()

    def first_trials(self, label: str) -> list[InitialTrial]:
        return plan_initial_trials(self.experiment, EXPONENTS, label, informed=bool(self.tried))

    def start(self, label: str) -> optuna.Trial:
        if not self.waiting[label]:
            return super().start(label)
        starting, given = self.waiting[label].pop(0), self.given[label]
        parameters = choose_parameters(
            starting, self.experiment, EXPONENTS, label=label, history=self.tried, started=given
        )
        given.append(InitialTrial(starting.part, parameters))
        self.studies[label].enqueue_trial(parameters)
        self.first.add(sum(self.asked.values()) - 1)
        return super().start(label)

    def configuration(self, trial: optuna.Trial) -> Configuration:
        found = suggest(trial, self.experiment, EXPONENTS)
        assert found.batch_size_exponent is not None
        return Configuration(found.resolution, found.architecture, 2**found.batch_size_exponent, found.learning_rate)

    def report(self, number: int, epoch: int, auc: float) -> bool:
        _, trial = self.running[number]
        trial.report(auc, epoch)
        asked = number not in self.first and epoch in prunable_epochs(self.experiment)
        return asked and trial.should_prune()

    def tell(self, number: int, auc: float | None) -> None:
        label, trial = self.running[number]
        super().tell(number, auc)
        if auc is not None:
            self.tried.append(EndedTrial(label, trial.params["resolution"], recipe_of(trial.params), auc))


class EvenFirst(Acuity):
    """Acuity, but every resolution runs the same six recipes of its label; no label gets another's recipe."""

    def first_trials(self, label: str) -> list[InitialTrial]:
        recipes = own_recipes(self.experiment, EXPONENTS, label)[:_EVEN]
        return [InitialTrial("even", recipe.at(resolution)) for recipe in recipes for resolution in RESOLUTIONS]


class Alone:
    """Acuity with one experiment per label, so that no label learns from another."""

    def __init__(self, labels: Sequence[str], seed: int, *, workers: int) -> None:
        share = -(-workers // len(labels))
        self.searches = [
            Acuity(acuity_experiment([label], seed=seed + position), workers=share)
            for position, label in enumerate(labels)
        ]
        self.asked = 0

    def ask(self) -> tuple[int, str, Configuration] | None:
        position = self.asked % len(self.searches)
        asked = self.searches[position].ask()
        assert asked is not None
        self.asked += 1
        number, label, configuration = asked
        return number * len(self.searches) + position, label, configuration

    def report(self, number: int, epoch: int, auc: float) -> bool:
        return self._of(number).report(number // len(self.searches), epoch, auc)

    def tell(self, number: int, auc: float | None) -> None:
        self._of(number).tell(number // len(self.searches), auc)

    def _of(self, number: int) -> Acuity:
        return self.searches[number % len(self.searches)]


class GridSearch:
    """Every cell of the recorded factorial once, in random order, labels in turn, without pruning."""

    def __init__(self, labels: Sequence[str], seed: int) -> None:
        cells = list(itertools.product(RESOLUTIONS, ARCHITECTURES, BATCH_SIZES, LEARNING_RATES))
        random.Random(seed).shuffle(cells)
        self.runs = [(label, Configuration(*cell)) for cell in cells for label in labels]
        self.next = 0

    def ask(self) -> tuple[int, str, Configuration] | None:
        if self.next == len(self.runs):
            return None
        self.next += 1
        return self.next - 1, *self.runs[self.next - 1]

    def report(self, *_: object) -> bool:
        return False

    def tell(self, *_: object) -> None:
        pass


def acuity_experiment(
    labels: Sequence[str], *, seed: int, minimum: int | None = None, learn_from: tuple[str, ...] = ()
) -> Experiment:
    """An experiment with Acuity's defaults over the recorded space. The seed draws the recipes."""
    search = Search(
        resolutions=RESOLUTIONS,
        architectures=ARCHITECTURES,
        trials=1000,
        learning_rate=RATES,
        min_batch_size=BATCH_SIZES[0],
        max_batch_size=BATCH_SIZES[-1],
        seed=seed,
        learn_from=learn_from,
        **({} if minimum is None else {"min_complete_per_resolution": minimum}),
    )
    data = Data(index=Path("none.csv"), images=Path("none"))
    return Experiment("replay", tuple(labels), data, search, Training(epochs=EPOCHS))


def unit_seconds(surrogate: Surrogate) -> float:
    """CPU seconds of one whole training at the largest resolution, averaged over architectures."""
    largest = [Configuration(max(RESOLUTIONS), architecture, 16, 3e-3) for architecture in ARCHITECTURES]
    return float(surrogate.epoch_seconds(largest).mean()) * EPOCHS


def _another(seed: int) -> list[EndedTrial]:
    """Trials of an experiment on another phantom set: 20 units, one worker."""
    surrogates = _another_surrogates()
    search = Acuity(acuity_experiment(list(surrogates), seed=seed), workers=1)
    most_cost = 20 * sum(map(unit_seconds, surrogates.values()))
    replay(search, surrogates, workers=1, most_cost=most_cost, rng=np.random.default_rng(seed))
    return [replace(each, label=f"{ANOTHER}/{each.label}") for each in search.tried]


@cache
def _another_surrogates() -> dict[str, Surrogate]:
    """Surrogates of the image set of the earlier experiment."""
    rows = pd.read_parquet(CURVES)
    rows = rows[rows["image_set"] == ANOTHER]
    return {str(label): fit(of_label.reset_index(drop=True)) for label, of_label in rows.groupby("label")}


def _gaussian_process(seed: int) -> GPSampler:
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return GPSampler(seed=seed)


def _syne_tune(name: str, labels: Sequence[str], seed: int) -> Strategy:
    import syne_tune_searches  # optional: Acuity does not need Syne Tune

    return getattr(syne_tune_searches, name)(labels, seed)


STRATEGIES: dict[str, Callable[[Sequence[str], int, int], Strategy]] = {
    "random": lambda labels, seed, _: OptunaStudies(labels, lambda i: (RandomSampler(seed=seed + i), NopPruner())),
    "grid": lambda labels, seed, _: GridSearch(labels, seed),
    "optuna": lambda labels, seed, _: OptunaStudies(labels, lambda i: (TPESampler(seed=seed + i), MedianPruner())),
    "hyperband": lambda labels, seed, _: OptunaStudies(
        labels, lambda i: (TPESampler(seed=seed + i), HyperbandPruner(min_resource=1, max_resource=EPOCHS))
    ),
    "asha": lambda labels, seed, _: OptunaStudies(
        labels, lambda i: (RandomSampler(seed=seed + i), SuccessiveHalvingPruner(reduction_factor=2))
    ),
    "syne tune asha": lambda labels, seed, _: _syne_tune("asha", labels, seed),
    "syne tune bohb": lambda labels, seed, _: _syne_tune("bohb", labels, seed),
    "gp": lambda labels, seed, _: OptunaStudies(labels, lambda i: (_gaussian_process(seed + i), MedianPruner())),
    "acuity": lambda labels, seed, workers: Acuity(acuity_experiment(labels, seed=seed), workers=workers),
    AFTER_ANOTHER: lambda labels, seed, workers: Acuity(
        acuity_experiment(labels, seed=seed, learn_from=(ANOTHER,)), workers=workers, learnt=_another(seed)
    ),
    "acuity, labels alone": lambda labels, seed, workers: Alone(labels, seed, workers=workers),
    "acuity, even first trials": lambda labels, seed, workers: EvenFirst(
        acuity_experiment(labels, seed=seed, minimum=_EVEN), workers=workers
    ),
}
"""Functions of (labels, seed, number of simulated workers). `optuna` has the defaults of create_study()."""
