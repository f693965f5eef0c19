"""The search space is static, the first trials give every resolution the same effort."""

import dataclasses
import tomllib
from collections import Counter

import optuna
import pytest

from study.experiment import Experiment, parse
from study.search import (
    Configuration,
    batch_size_exponents,
    choose_batch_size,
    first_trials,
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


def with_search(**changes: object) -> Experiment:
    return dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, **changes))


def test_the_exponents_top_is_the_largest_batch_that_any_trial_may_run() -> None:
    assert batch_size_exponents(EXPERIMENT, 70_000) == (4, 10)
    low, high = batch_size_exponents(EXPERIMENT, 960)  # 48 images a step leave 20 steps an epoch
    assert 2 ** (high - 1) < 48 <= 2**high
    assert low == 4
    assert batch_size_exponents(EXPERIMENT, 60) == (2, 2)


def test_first_trials_cover_all_pairs_and_treat_resolutions_alike() -> None:
    trials = first_trials(EXPERIMENT, (4, 10))
    pairs = {(trial["resolution"], trial["architecture"]) for trial in trials[:6]}
    assert len(pairs) == 6
    assert Counter(trial["resolution"] for trial in trials) == {32: 6, 64: 6, 128: 6}
    effort = {
        resolution: [
            {key: value for key, value in trial.items() if key != "resolution"}
            for trial in trials
            if trial["resolution"] == resolution
        ]
        for resolution in (32, 64, 128)
    }
    assert effort[32] == effort[64] == effort[128]


def test_first_trials_spread_rates_and_batches_over_their_whole_range() -> None:
    trials = [trial for trial in first_trials(EXPERIMENT, (4, 10)) if trial["resolution"] == 32]
    low, high = EXPERIMENT.search.learning_rate
    sixths = {int(6 * quantile(trial["learning_rate"], low, high)) for trial in trials}
    assert len(sixths) >= 5
    assert len({trial["batch_size_exponent"] for trial in trials}) >= 5


def quantile(rate: float, low: float, high: float) -> float:
    import math

    return math.log(rate / low) / math.log(high / low)


def test_enqueued_parameters_are_what_suggest_returns() -> None:
    study = optuna.create_study(sampler=make_sampler(1))
    parameters = first_trials(EXPERIMENT, (4, 10))[4]
    study.enqueue_trial(parameters)
    configuration = suggest(study.ask(), EXPERIMENT, (4, 10))
    assert dataclasses.asdict(configuration) == parameters


def test_the_sampler_models_all_parameters_together() -> None:
    study = optuna.create_study(direction="maximize", sampler=make_sampler(1))
    for parameters in first_trials(EXPERIMENT, (4, 10)):
        study.enqueue_trial(parameters)
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
