"""The searches that `benchmarks/search.py` compares, all over one space and each as its users run it."""

import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from record_curves import ARCHITECTURES, BATCH_SIZES, EPOCHS, LEARNING_RATES, RESOLUTIONS
from replay import Strategy
from surrogate import Configuration

from study.experiment import Experiment
from study.recipes import Recipe, Tried, complete, first_trials, own_recipes, recipe_of
from study.search import make_pruner, make_sampler, prunable_epochs, suggest
from study.sections import Data, Search, Training

RATES = (LEARNING_RATES[0], LEARNING_RATES[-1])
EXPONENTS = (BATCH_SIZES[0].bit_length() - 1, BATCH_SIZES[-1].bit_length() - 1)
_EVEN = 6


class OptunaStudies:
    """A study in memory for each label; the label with the fewest trials is asked next, as our workers do."""

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
    """The product's own first trials, sampler, pruner and rules of who is asked to stop."""

    def __init__(self, experiment: Experiment, *, workers: int) -> None:
        seed, labels = experiment.search.seed, experiment.labels
        # A study rarely has more trials running than its share of the workers.
        pruner = make_pruner(experiment, running=-(-workers // len(labels)))
        super().__init__(labels, lambda position: (make_sampler(seed + position), pruner))
        self.experiment = experiment
        self.waiting = {label: self.first_trials(label) for label in labels}
        self.given: dict[str, dict[int, set[Recipe]]] = {label: {} for label in labels}
        self.first: dict[int, tuple[str, int, Recipe]] = {}
        self.tried: list[Tried] = []

    def first_trials(self, label: str) -> list[dict]:
        return first_trials(self.experiment, EXPONENTS, label)

    def start(self, label: str) -> optuna.Trial:
        if not self.waiting[label]:
            return super().start(label)
        given = self.given[label]
        parameters = complete(
            self.waiting[label].pop(0), self.experiment, EXPONENTS, label=label, tried=self.tried, given=given
        )
        resolution, recipe = parameters["resolution"], recipe_of(parameters)
        given.setdefault(resolution, set()).add(recipe)
        self.studies[label].enqueue_trial(parameters)
        self.first[sum(self.asked.values()) - 1] = (label, resolution, recipe)
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
        if number in self.first:
            assert auc is not None
            self.tried.append(Tried(*self.first[number], auc))
        super().tell(number, auc)


class LargestFirst(Acuity):
    """Whose labels try all of their own recipes at the largest resolution, before any smaller one."""

    def first_trials(self, label: str) -> list[dict]:
        *smaller, largest = RESOLUTIONS
        turns = self.experiment.search.min_complete_per_resolution
        own = own_recipes(self.experiment, EXPONENTS, label)[:turns]
        return [
            *(recipe.at(largest) for recipe in own),
            *({"resolution": resolution} for _ in own for resolution in (largest, *smaller[::-1])),
        ]


class EvenFirst(Acuity):
    """Without recipes that are passed on: every resolution runs the same six of its label's own."""

    def first_trials(self, label: str) -> list[dict]:
        recipes = own_recipes(self.experiment, EXPONENTS, label)[:_EVEN]
        return [recipe.at(resolution) for recipe in recipes for resolution in RESOLUTIONS]


class Alone:
    """Every label as an experiment of its own, which learns nothing from the others."""

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
    """Every cell of the recorded factorial once, in random order, labels in turn, none ended early."""

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


def acuity_experiment(labels: Sequence[str], *, seed: int, minimum: int | None = None) -> Experiment:
    """The product's settings over the recorded space; the seed draws the recipes."""
    search = Search(
        resolutions=RESOLUTIONS,
        architectures=ARCHITECTURES,
        trials=1000,
        learning_rate=RATES,
        min_batch_size=BATCH_SIZES[0],
        max_batch_size=BATCH_SIZES[-1],
        seed=seed,
        **({} if minimum is None else {"min_complete_per_resolution": minimum}),
    )
    data = Data(index=Path("none.csv"), images=Path("none"))
    return Experiment("replay", tuple(labels), data, search, Training(epochs=EPOCHS))


def _gaussian_process(seed: int) -> GPSampler:
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return GPSampler(seed=seed)


def _syne_tune(name: str, labels: Sequence[str], seed: int) -> Strategy:
    import syne_tune_searches  # a peer that Acuity itself does not need

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
    "acuity, labels alone": lambda labels, seed, workers: Alone(labels, seed, workers=workers),
    "acuity, largest first": lambda labels, seed, workers: LargestFirst(
        acuity_experiment(labels, seed=seed), workers=workers
    ),
    "acuity, even first trials": lambda labels, seed, workers: EvenFirst(
        acuity_experiment(labels, seed=seed, minimum=_EVEN), workers=workers
    ),
}
"""By name: made from (labels, seed, simulated workers). `optuna` is what create_study() does by default."""
