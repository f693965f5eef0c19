"""The first trials: every resolution gets the same number, and the best recipes that any label has found."""

import dataclasses
import math
import tomllib
from collections import Counter

from study.experiment import Experiment, parse
from study.recipes import Recipe, Tried, choose_recipe, first_trials, own_recipes, rank_recipes

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


def test_label_tries_recipes_of_its_own_at_the_largest_resolution_and_the_best_ones_everywhere() -> None:
    trials = first_trials(EXPERIMENT, EXPONENTS, "Mass")
    own, others = trials[:3], trials[3:]
    assert own == [recipe.at(128) for recipe in own_recipes(EXPERIMENT, EXPONENTS, "Mass")]
    assert Counter(trial["resolution"] for trial in others) == {32: 3, 64: 3, 128: 3}
    assert all(set(trial) == {"resolution"} for trial in others)


def test_smallest_budget_has_the_same_number_at_each_resolution() -> None:
    trials = first_trials(with_trials(9), EXPONENTS, "Mass")
    assert Counter(trial["resolution"] for trial in trials) == {32: 3, 64: 3, 128: 3}


def test_recipes_of_all_labels_together_spread_over_rates_batches_and_networks() -> None:
    recipes = [recipe for label in EXPERIMENT.labels for recipe in own_recipes(EXPERIMENT, EXPONENTS, label)]
    low, high = EXPERIMENT.search.learning_rate
    ninths = {int(9 * math.log(recipe.learning_rate / low) / math.log(high / low)) for recipe in recipes}
    assert len(ninths) == len(set(recipes)) == 9
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
