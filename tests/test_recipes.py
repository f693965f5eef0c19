"""The first trials: every resolution gets the same number, and the best recipes that any label has found."""

import dataclasses
import math
import tomllib
from collections import Counter
from typing import Any

import pytest

from study.experiment import Experiment, parse
from study.recipes import (
    Recipe,
    Tried,
    choose_recipe,
    complete,
    first_trials,
    own_recipes,
    rank_recipes,
    telling_resolution,
)

EXPONENTS = (4, 10)
EXPERIMENT = parse(
    tomllib.loads(
        """
        name = "nih"
        labels = ["Effusion", "Mass", "Nodule"]
        data = { index = "a.csv", images = "images" }
        training = { epochs = 10 }
        [search]
        resolutions = [64, 128, 32]
        architectures = ["test_resnet", "test_efficientnet"]
        trials = 24
        """
    ),
    source="here",
)


def with_trials(trials: int) -> Experiment:
    return dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, trials=trials))


def recipe(rate: float) -> Recipe:
    return Recipe("test_resnet", rate, 5)


GOOD, FAIR, POOR = (recipe(rate) for rate in (1e-3, 2e-3, 3e-3))


def test_label_looks_at_every_resolution_then_tries_its_own_recipes_then_runs_the_best() -> None:
    trials = first_trials(EXPERIMENT, EXPONENTS, "Mass")
    first, *others = own_recipes(EXPERIMENT, EXPONENTS, "Mass")
    assert trials[:3] == [first.at(32), first.at(64), first.at(128)], "one recipe, from the cheapest on"
    assert trials[3:6] == [other.parameters() for other in others], "where, is decided when they start"
    assert Counter(trial["resolution"] for trial in trials[6:]) == {32: 2, 64: 2, 128: 2}
    assert all(set(trial) == {"resolution"} for trial in trials[6:])


@pytest.mark.parametrize("more", [0, 1, 2])
def test_small_budget_has_the_same_number_at_each_resolution_before_recipes_of_its_own(more: int) -> None:
    trials = first_trials(with_trials(9 + more), EXPONENTS, "Mass")
    assert Counter(trial.get("resolution") for trial in trials if "resolution" in trial) == {32: 3, 64: 3, 128: 3}
    assert len(trials) == 9 + more


def seen(auc_by_resolution: dict[int, float], label: str = "Mass") -> list[Tried]:
    return [Tried(label, resolution, POOR, auc) for resolution, auc in auc_by_resolution.items()]


@pytest.mark.parametrize(
    ("aucs", "expected"),
    [
        ({}, 128),
        ({32: 0.55, 64: 0.53}, 128),  # nothing shows yet: it may at the largest
        ({32: 0.55, 64: 0.53, 128: 0.57}, 128),
        ({32: 0.80, 64: 0.85, 128: 0.84}, 32),
        ({32: 0.61, 64: 0.75, 128: 0.95}, 128),  # the smaller ones show only a part of it
        ({32: 0.61, 64: 0.80, 128: 0.95}, 64),
        ({32: 0.61}, 32),
    ],
)
def test_recipes_are_told_apart_at_the_smallest_resolution_where_the_finding_shows(
    aucs: dict[int, float], expected: int
) -> None:
    assert telling_resolution(EXPERIMENT, "Mass", seen(aucs)) == expected
    others = seen({32: 0.9}, label="Effusion")
    assert telling_resolution(EXPERIMENT, "Mass", [*others, *seen(aucs)]) == expected, "another label's sight counted"


def test_trial_that_starts_gets_what_it_lacks() -> None:
    def started(enqueued: dict[str, Any], given: dict[int, set[Recipe]] | None = None) -> dict[str, Any]:
        tried = [Tried("Mass", 32, GOOD, 0.8), Tried("Mass", 32, FAIR, 0.7)]
        return complete(enqueued, EXPERIMENT, EXPONENTS, label="Mass", tried=tried, given=given or {})

    assert started(POOR.parameters()) == POOR.at(32)
    assert started({"resolution": 64}) == GOOD.at(64)
    assert started({"resolution": 64}, {64: {GOOD}}) == FAIR.at(64)
    assert started({"resolution": 64}, {32: {GOOD}}) == GOOD.at(64), "it was given at another resolution"
    assert started(POOR.at(128)) == POOR.at(128)


def test_recipes_of_all_labels_together_spread_over_rates_batches_and_networks() -> None:
    recipes = [recipe for label in EXPERIMENT.labels for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)]
    low, high = EXPERIMENT.search.learning_rate
    twelfths = {int(12 * math.log(recipe.learning_rate / low) / math.log(high / low)) for recipe in recipes}
    assert len(twelfths) == len(set(recipes)) == 12
    assert {recipe.batch_size_exponent for recipe in recipes} == set(range(4, 11))
    for label in EXPERIMENT.labels:
        assert len({recipe.architecture for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)}) == 2


def test_recipe_is_ranked_by_the_labels_that_show_a_difference() -> None:
    tried = [
        Tried("Effusion", 128, GOOD, 0.80),
        Tried("Effusion", 128, POOR, 0.60),
        Tried("Mass", 128, GOOD, 0.49),  # a label that shows nothing yet
        Tried("Mass", 128, POOR, 0.52),
    ]
    assert rank_recipes(tried) == [GOOD, POOR]


def test_recipe_of_a_hard_label_may_be_better_than_one_with_a_higher_auc_on_an_easy_one() -> None:
    tried = [
        Tried("Effusion", 128, FAIR, 0.90),
        Tried("Effusion", 128, POOR, 0.85),
        Tried("Nodule", 128, FAIR, 0.60),
        Tried("Nodule", 128, GOOD, 0.70),
    ]
    assert rank_recipes(tried) == [GOOD, FAIR, POOR]


def test_best_recipe_of_any_label_is_taken_unless_the_resolution_has_had_it() -> None:
    tried = [Tried("Effusion", 128, GOOD, 0.8), Tried("Effusion", 128, FAIR, 0.7)]
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", tried=tried, given=set()) == GOOD
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", tried=tried, given={GOOD}) == FAIR


def test_without_results_a_label_goes_on_with_its_own_recipes_then_with_others_then_again() -> None:
    own = own_recipes(EXPERIMENT, EXPONENTS, "Mass")
    everybodys = {recipe for label in EXPERIMENT.labels for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)}
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", tried=[], given={own[0]}) == own[1]
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", tried=[], given=set(own)) not in own
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", tried=[], given=everybodys) == own[0]
