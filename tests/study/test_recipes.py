"""Own recipes of a label, and the ranking of all recipes."""

import dataclasses
import math

import numpy as np
import pytest

from acuity.study.search.recipes import EndedTrial, Recipe, choose_recipe, is_in_search_space, own_recipes, rank_recipes
from support.searched_experiment import EXPERIMENT, EXPONENTS, FAIR, GOOD, POOR


def recipe(rate: float) -> Recipe:
    return Recipe("test_resnet", rate, 5)


def test_recipes_of_all_labels_together_spread_over_rates_batches_and_networks() -> None:
    recipes = [recipe for label in EXPERIMENT.labels for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)]
    low, high = EXPERIMENT.search.learning_rate
    twelfths = {int(12 * math.log(recipe.learning_rate / low) / math.log(high / low)) for recipe in recipes}
    assert len(twelfths) == len(set(recipes)) == 12
    assert {recipe.batch_size_exponent for recipe in recipes} == set(range(4, 11))
    for label in EXPERIMENT.labels:
        assert len({recipe.architecture for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)}) == 2


def test_own_recipes_differ_from_those_of_the_experiment_in_learn_from() -> None:
    again = dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, learn_from=("pilot",)))
    for label in EXPERIMENT.labels:
        theirs = own_recipes(EXPERIMENT, EXPONENTS, label)
        assert not set(own_recipes(again, EXPONENTS, label)) & set(theirs)


def test_recipe_is_ranked_by_the_labels_with_a_difference() -> None:
    tried = [
        EndedTrial("Effusion", 128, GOOD, 0.80),
        EndedTrial("Effusion", 128, POOR, 0.60),
        EndedTrial("Mass", 128, GOOD, 0.49),  # a label without a detectable finding
        EndedTrial("Mass", 128, POOR, 0.52),
    ]
    assert rank_recipes(tried) == [GOOD, POOR]


def test_recipe_of_a_hard_label_may_be_better_than_one_with_a_higher_auc_on_an_easy_one() -> None:
    tried = [
        EndedTrial("Effusion", 128, FAIR, 0.90),
        EndedTrial("Effusion", 128, POOR, 0.85),
        EndedTrial("Nodule", 128, FAIR, 0.60),
        EndedTrial("Nodule", 128, GOOD, 0.70),
    ]
    assert rank_recipes(tried) == [GOOD, FAIR, POOR]


def test_ranking_equals_an_explicit_ridge_regression() -> None:
    rng = np.random.default_rng(3)
    recipes = [recipe(rate) for rate in np.geomspace(1e-4, 1e-2, 9)]
    tried = [
        EndedTrial(
            str(rng.choice(["Effusion", "Mass"])), int(rng.choice([32, 64])), recipes[rng.integers(9)], rng.random()
        )
        for _ in range(40)
    ]
    cells = sorted({(each.label, each.resolution) for each in tried})
    design = np.zeros((len(tried), len(cells) + len(recipes)))
    for row, each in zip(design, tried, strict=True):
        row[cells.index((each.label, each.resolution))] = row[len(cells) + recipes.index(each.recipe)] = 1
    penalty = np.diag([1e-6] * len(cells) + [0.1] * len(recipes))
    added = np.linalg.solve(design.T @ design + penalty, design.T @ [each.auc for each in tried])[len(cells) :]
    expected = [recipes[at] for at in np.argsort(-added) if any(each.recipe == recipes[at] for each in tried)]
    assert rank_recipes(tried) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"architecture": "resnet34"}, False),
        ({"learning_rate": 2e-2}, False),
        ({"learning_rate": 1e-2}, True),
        ({"batch_size_exponent": 3}, False),
        ({"batch_size_exponent": None}, False),  # of an experiment whose batch was not searched
    ],
)
def test_recipe_outside_the_search_space_is_recognised(change: dict, expected: bool) -> None:
    changed = dataclasses.replace(recipe(1e-3), **change)
    assert is_in_search_space(changed, EXPERIMENT, EXPONENTS) is expected
    largest = dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, batch="largest"))
    assert is_in_search_space(changed, largest, EXPONENTS) is (changed.batch_size_exponent is None)


def test_best_recipe_of_any_label_is_taken_unless_the_resolution_has_had_it() -> None:
    tried = [EndedTrial("Effusion", 128, GOOD, 0.8), EndedTrial("Effusion", 128, FAIR, 0.7)]
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", history=tried, used=set()) == GOOD
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", history=tried, used={GOOD}) == FAIR


def test_without_results_a_label_gets_own_recipes_then_those_of_others_then_the_first_again() -> None:
    own = own_recipes(EXPERIMENT, EXPONENTS, "Mass")
    of_all = {recipe for label in EXPERIMENT.labels for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)}
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", history=[], used={own[0]}) == own[1]
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", history=[], used=set(own)) not in own
    assert choose_recipe(EXPERIMENT, EXPONENTS, label="Mass", history=[], used=of_all) == own[0]
