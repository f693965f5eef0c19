"""The search space, the sampler and the pruner of an experiment."""

import math
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler

from acuity.study.config.schema import Experiment

BELOW_THE_MEDIAN = "below the median of earlier trials at this epoch"
"""Reason of a trial that the pruner stopped; other PRUNED trials diverged or did not fit."""


@dataclass(frozen=True)
class Configuration:
    """One point of the search space."""

    resolution: int
    architecture: str
    learning_rate: float
    batch_size_exponent: int | None
    """None where the batch size is not searched."""


def batch_size_exponents(experiment: Experiment, training_images: int) -> tuple[int, int]:
    """Range of batch_size_exponent, fixed for the experiment; its upper end means the largest feasible batch.

    TPE's joint model leaves out a parameter with a range that depends on other parameters.
    """
    search = experiment.search
    largest = max(2, min(search.max_batch_size, training_images // search.min_updates_per_epoch))
    high = math.ceil(math.log2(largest))
    return min(math.ceil(math.log2(search.min_batch_size)), high), high


def suggest(trial: optuna.Trial, experiment: Experiment, exponents: tuple[int, int]) -> Configuration:
    """Suggest all parameters at once: a trial that ends without some of them would empty TPE's joint search space."""
    search = experiment.search
    return Configuration(
        resolution=trial.suggest_categorical("resolution", search.resolutions),
        architecture=trial.suggest_categorical("architecture", search.architectures),
        learning_rate=trial.suggest_float("learning_rate", *search.learning_rate, log=True),
        batch_size_exponent=(
            trial.suggest_int("batch_size_exponent", *exponents) if search.batch == "search" else None
        ),
    )


def choose_batch_size(configuration: Configuration, experiment: Experiment, *, feasible: int) -> int | None:
    """The batch size to train with, or None where the experiment's fixed one is not feasible."""
    policy: int | str = experiment.search.batch
    if policy == "largest":
        return feasible
    if policy == "search":
        assert configuration.batch_size_exponent is not None
        return min(1 << configuration.batch_size_exponent, feasible)
    assert isinstance(policy, int)
    return policy if policy <= feasible else None


def make_sampler(seed: int) -> BaseSampler:
    """Multivariate TPE with constant liar, Optuna 5's defaults; each worker passes another seed."""
    return TPESampler(seed=seed)


def make_pruner(experiment: Experiment, *, running: int) -> BasePruner:
    """Median pruner that waits for a fifth of the epochs, and for as many complete trials as run at once."""
    if experiment.search.pruner == "none":
        return NopPruner()
    return MedianPruner(
        n_startup_trials=max(8, running),
        n_warmup_steps=prunable_epochs(experiment).start,
    )


def prunable_epochs(experiment: Experiment) -> range:
    """Epochs, from 1, after which the pruner is asked. These calls are half of a trial's cost in the storage."""
    epochs = experiment.training.epochs
    return range(0) if experiment.search.pruner == "none" else range(math.ceil(0.2 * epochs) + 1, epochs)
