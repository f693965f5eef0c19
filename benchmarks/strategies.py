"""The searches that `benchmarks/search.py` compares, all over one space and each as its users run it."""

import itertools
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from cost_aware_sampler import CostAwareSampler
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from record_curves import ARCHITECTURES, BATCH_SIZES, EPOCHS, LEARNING_RATES, RESOLUTIONS
from replay import Strategy
from surrogate import Configuration

from study.experiment import Experiment
from study.search import first_trials, make_pruner, make_sampler, prunable_epochs, suggest
from study.sections import Data, Search, Training

RATES = (LEARNING_RATES[0], LEARNING_RATES[-1])
EXPONENTS = (BATCH_SIZES[0].bit_length() - 1, BATCH_SIZES[-1].bit_length() - 1)


class OptunaSearch:
    """Ask, report and tell of one Optuna study in memory."""

    def __init__(self, sampler: BaseSampler, pruner: BasePruner) -> None:
        self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self.running: dict[int, optuna.Trial] = {}

    def ask(self) -> tuple[int, Configuration] | None:
        trial = self.study.ask()
        self.running[trial.number] = trial
        return trial.number, Configuration(
            resolution=trial.suggest_categorical("resolution", RESOLUTIONS),
            architecture=trial.suggest_categorical("architecture", ARCHITECTURES),
            learning_rate=trial.suggest_float("learning_rate", *RATES, log=True),
            batch_size=2 ** trial.suggest_int("batch_size_exponent", *EXPONENTS),
        )

    def report(self, number: int, epoch: int, auc: float) -> bool:
        self.running[number].report(auc, epoch)
        return epoch < EPOCHS and self.running[number].should_prune()

    def tell(self, number: int, auc: float | None, *, epochs: int, seconds: float) -> None:
        trial = self.running.pop(number)
        trial.set_user_attr("epochs", epochs)
        trial.set_user_attr("seconds", seconds)
        if auc is None:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, auc)


class AcuitySearch(OptunaSearch):
    """The product's own first trials, sampler, pruner and rules of who is asked to stop."""

    def __init__(self, seed: int, *, workers: int, experiment: Experiment, sampler: BaseSampler | None = None) -> None:
        super().__init__(sampler or make_sampler(seed), make_pruner(experiment, running=workers))
        self.experiment = experiment
        self.first = 0
        for parameters in first_trials(experiment, EXPONENTS):
            self.study.enqueue_trial(parameters)
            self.first += 1

    def ask(self) -> tuple[int, Configuration] | None:
        trial = self.study.ask()
        self.running[trial.number] = trial
        found = suggest(trial, self.experiment, EXPONENTS)
        assert found.batch_size_exponent is not None
        return trial.number, Configuration(
            found.resolution, found.architecture, 2**found.batch_size_exponent, found.learning_rate
        )

    def report(self, number: int, epoch: int, auc: float) -> bool:
        self.running[number].report(auc, epoch)
        asked = number >= self.first and epoch in prunable_epochs(self.experiment)
        return asked and self.running[number].should_prune()


class PrunedFirst(AcuitySearch):
    """As ours, but first trials from turn `spared` on may end early: by the median of all or of their resolution."""

    def __init__(self, seed: int, *, workers: int, experiment: Experiment, spared: int, by: tuple[str, ...]) -> None:
        super().__init__(seed, workers=workers, experiment=experiment)
        self.first = spared * len(experiment.search.resolutions)
        self.by = by

    def report(self, number: int, epoch: int, auc: float) -> bool:
        by_all = super().report(number, epoch, auc)
        if number < self.first or epoch not in prunable_epochs(self.experiment):
            return False
        return ("all" in self.by and by_all) or (
            "resolution" in self.by and self._is_below_its_resolution(number, epoch)
        )

    def _is_below_its_resolution(self, number: int, epoch: int) -> bool:
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        mine = trials[number]
        others = [
            max(value for at, value in trial.intermediate_values.items() if at <= epoch)
            for trial in trials.values()
            if trial.number != number
            and trial.params.get("resolution") == mine.params["resolution"]
            and trial.state is not optuna.trial.TrialState.RUNNING
            and epoch in trial.intermediate_values
        ]
        best = max(value for at, value in mine.intermediate_values.items() if at <= epoch)
        return len(others) >= 2 and best < float(np.median(others))


class GridSearch:
    """Every cell of the recorded factorial once, in random order, none ended early."""

    def __init__(self, seed: int) -> None:
        self.cells = list(itertools.product(RESOLUTIONS, ARCHITECTURES, BATCH_SIZES, LEARNING_RATES))
        random.Random(seed).shuffle(self.cells)
        self.next = 0

    def ask(self) -> tuple[int, Configuration] | None:
        if self.next == len(self.cells):
            return None
        self.next += 1
        return self.next - 1, Configuration(*self.cells[self.next - 1])

    def report(self, *_: object) -> bool:
        return False

    def tell(self, *_: object, **__: object) -> None:
        pass


def acuity_experiment(*, seed: int, minimum: int, trials: int = 1000, pruner: str = "median") -> Experiment:
    """The product's settings over the recorded space; the seed draws the first trials' rates and batches."""
    search = Search(
        resolutions=RESOLUTIONS,
        architectures=ARCHITECTURES,
        trials=trials,
        min_complete_per_resolution=minimum,
        learning_rate=RATES,
        min_batch_size=BATCH_SIZES[0],
        max_batch_size=BATCH_SIZES[-1],
        pruner=pruner,
        seed=seed,
    )
    data = Data(index=Path("none.csv"), images=Path("none"))
    return Experiment("replay", ("label",), data, search, Training(epochs=EPOCHS))


def _pruned_first(seed: int, workers: int, *, minimum: int, spared: int, by: tuple[str, ...]) -> PrunedFirst:
    return PrunedFirst(
        seed, workers=workers, experiment=acuity_experiment(seed=seed, minimum=minimum), spared=spared, by=by
    )


def _hyperband(seed: int) -> OptunaSearch:
    return OptunaSearch(TPESampler(seed=seed), HyperbandPruner(min_resource=1, max_resource=EPOCHS))


def _gaussian_process(seed: int) -> OptunaSearch:
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return OptunaSearch(GPSampler(seed=seed), MedianPruner())


STRATEGIES: dict[str, Callable[[int, int], Strategy]] = {
    "random": lambda seed, _: OptunaSearch(RandomSampler(seed=seed), NopPruner()),
    "grid": lambda seed, _: GridSearch(seed),
    "optuna": lambda seed, _: OptunaSearch(TPESampler(seed=seed), MedianPruner()),
    "hyperband": lambda seed, _: _hyperband(seed),
    "gp": lambda seed, _: _gaussian_process(seed),
    "acuity": lambda seed, workers: AcuitySearch(
        seed, workers=workers, experiment=acuity_experiment(seed=seed, minimum=6)
    ),
    "prunable-2-all": lambda seed, workers: _pruned_first(seed, workers, minimum=6, spared=2, by=("all",)),
    "prunable-2-resolution": lambda seed, workers: _pruned_first(
        seed, workers, minimum=6, spared=2, by=("resolution",)
    ),
    "prunable-2-both": lambda seed, workers: _pruned_first(
        seed, workers, minimum=6, spared=2, by=("all", "resolution")
    ),
    "prunable-1-both": lambda seed, workers: _pruned_first(
        seed, workers, minimum=6, spared=1, by=("all", "resolution")
    ),
    "acuity-fewer-first": lambda seed, workers: AcuitySearch(
        seed, workers=workers, experiment=acuity_experiment(seed=seed, minimum=2)
    ),
    "cost-aware": lambda seed, workers: AcuitySearch(
        seed, workers=workers, experiment=acuity_experiment(seed=seed, minimum=2), sampler=CostAwareSampler(seed)
    ),
}
"""By name: made from (seed, simulated workers). `optuna` is what create_study() does by default."""
