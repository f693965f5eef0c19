"""The search space, the sampler and the pruner."""

import dataclasses
import tomllib

import optuna
import pytest

from acuity.study.config.loading import parse
from acuity.study.config.rules import check_fixed_batch
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.search.recipes import own_recipes
from acuity.study.search.space import (
    Configuration,
    batch_size_exponents,
    choose_batch_size,
    make_pruner,
    make_sampler,
    suggest,
)

EXPERIMENT = parse(
    tomllib.loads(
        """
        name = "nih"
        labels = ["Effusion"]
        data = { index = "a.csv", images = "images" }
        training = { epochs = 10 }
        [search]
        resolutions = [32, 64, 128]
        architectures = ["test_resnet", "test_efficientnet"]
        trials = 24
        """
    ),
    source="here",
)


@pytest.mark.parametrize(("batch", "most"), [(512, 400), (16, None), ("largest", None)])
def test_fixed_batch_that_leaves_too_few_steps_an_epoch_is_refused(batch: int | str, most: int | None) -> None:
    if most is None:
        check_fixed_batch(with_search(batch=batch), 8_015)
        return
    with pytest.raises(UsageError, match=rf"search.batch is {batch}, must be at most {most}: 8,015 training images"):
        check_fixed_batch(with_search(batch=batch), 8_015)


def with_search(**changes: object) -> Experiment:
    return dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, **changes))


def test_the_exponents_top_is_the_largest_batch_that_any_trial_may_run() -> None:
    assert batch_size_exponents(EXPERIMENT, 70_000) == (4, 10)
    low, high = batch_size_exponents(EXPERIMENT, 960)  # 48 images a step leave 20 steps an epoch
    assert 2 ** (high - 1) < 48 <= 2**high
    assert low == 4
    assert batch_size_exponents(EXPERIMENT, 60) == (2, 2)


def test_enqueued_parameters_are_what_suggest_returns() -> None:
    study = optuna.create_study(sampler=make_sampler(1))
    parameters = own_recipes(EXPERIMENT, (4, 10), "Effusion")[1].at(64)
    study.enqueue_trial(parameters)
    configuration = suggest(study.ask(), EXPERIMENT, (4, 10))
    assert dataclasses.asdict(configuration) == parameters


def test_the_sampler_models_all_parameters_together() -> None:
    study = optuna.create_study(direction="maximize", sampler=make_sampler(1))
    for recipe in own_recipes(EXPERIMENT, (4, 10), "Effusion"):
        study.enqueue_trial(recipe.at(128))
    for _ in range(24):
        trial = study.ask()
        suggest(trial, EXPERIMENT, (4, 10))
        study.tell(trial, 0.7)
    trial = study.ask()
    assert set(trial.relative_params) == {"resolution", "architecture", "learning_rate", "batch_size_exponent"}


@pytest.mark.parametrize(
    ("batch", "exponent", "feasible", "expected"),
    [
        ("search", 5, 48, 32),
        ("search", 10, 48, 48),
        ("largest", None, 48, 48),
        (32, None, 48, 32),
        (64, None, 48, None),
    ],
)
def test_batch_policies(batch: object, exponent: int | None, feasible: int, expected: int | None) -> None:
    configuration = Configuration(64, "test_resnet", 1e-3, exponent)
    assert choose_batch_size(configuration, with_search(batch=batch), feasible=feasible) == expected


def test_the_pruner_waits_for_as_many_trials_as_run_at_once() -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner(EXPERIMENT, running=12))
    for number in range(12):
        trial = study.ask()
        for epoch in range(1, 11):
            trial.report(0.9, epoch)
        poor = study.ask()
        poor.report(0.1, 3)
        assert not poor.should_prune(), f"after {number} trials"
        study.tell(trial, 0.9)
    poor = study.ask()
    poor.report(0.1, 2)
    assert not poor.should_prune(), "in the warm-up"
    poor.report(0.1, 3)
    assert poor.should_prune()
