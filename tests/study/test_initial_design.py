"""The plan of the initial trials: every resolution gets the same number, with recipes from earlier results."""

import dataclasses
from collections import Counter

import pytest

from acuity.study.config.schema import Experiment
from acuity.study.search.initial_design import (
    InitialTrial,
    choose_parameters,
    plan_initial_trials,
)
from acuity.study.search.recipes import EndedTrial, own_recipes
from support.searched_experiment import EXPERIMENT, EXPONENTS, FAIR, GOOD


def with_minimum(minimum: int) -> Experiment:
    return dataclasses.replace(
        EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, min_complete_per_resolution=minimum)
    )


def test_plan_has_one_recipe_at_every_resolution_then_another_at_each_then_the_best_of_all_labels() -> None:
    trials = plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass")
    first, *others = own_recipes(EXPERIMENT, EXPONENTS, "Mass")
    assert [trial.parameters for trial in trials[:3]] == [first.at(32), first.at(64), first.at(128)], "cheapest first"
    assert [trial.parameters for trial in trials[3:6]] == [others[0].at(32), others[1].at(64), others[2].at(128)]
    assert [trial.part for trial in trials] == ["look"] * 3 + ["own"] * 3 + ["carried"] * 3
    assert [trial.parameters for trial in trials[6:]] == [{"resolution": at} for at in (32, 64, 128)]


def test_informed_plan_leaves_the_first_recipe_open() -> None:
    trials = plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass", informed=True)
    assert [trial.parameters for trial in trials[:3]] == [{"resolution": at} for at in (32, 64, 128)]
    assert trials[3:] == plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass")[3:]


@pytest.mark.parametrize(("minimum", "own", "carried"), [(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 2, 1), (6, 3, 2)])
def test_every_resolution_has_the_same_number_of_initial_trials(minimum: int, own: int, carried: int) -> None:
    trials = plan_initial_trials(with_minimum(minimum), EXPONENTS, "Mass")
    found = Counter((trial.part, trial.parameters["resolution"]) for trial in trials)
    expected = {"look": 1, "own": own, "carried": carried}
    assert found == {(part, at): n for part, n in expected.items() if n for at in (32, 64, 128)}
    recipes = [trial.parameters["learning_rate"] for trial in trials if trial.part == "own"]
    assert len(set(recipes)) == len(recipes), "the resolutions share no own recipe"


def run(starting: InitialTrial, history: list[EndedTrial], started: list[InitialTrial] | None = None) -> dict:
    return choose_parameters(starting, EXPERIMENT, EXPONENTS, label="Mass", history=history, started=started or [])


def test_trial_that_starts_gets_the_best_recipe_that_its_resolution_has_not_had() -> None:
    tried = [EndedTrial("Mass", 32, GOOD, 0.8), EndedTrial("Mass", 32, FAIR, 0.7)]
    carried = InitialTrial("carried", {"resolution": 64})
    assert run(carried, tried) == GOOD.at(64)
    assert run(carried, tried, [InitialTrial("own", GOOD.at(64))]) == FAIR.at(64)
    assert run(carried, tried, [InitialTrial("own", GOOD.at(32))]) == GOOD.at(64), "it was given at another resolution"
    assert run(InitialTrial("carried", {"resolution": 32}), tried)["learning_rate"] not in (
        GOOD.learning_rate,
        FAIR.learning_rate,
    )


def test_informed_plan_keeps_its_recipe_at_every_resolution_although_another_does_better() -> None:
    looked = InitialTrial(
        "look", run(InitialTrial("look", {"resolution": 32}), [EndedTrial("pilot/Mass", 32, GOOD, 0.8)])
    )
    tried = [
        EndedTrial("pilot/Mass", 32, GOOD, 0.8),
        EndedTrial("Effusion", 64, FAIR, 0.9),
        EndedTrial("Effusion", 64, GOOD, 0.6),
    ]
    assert looked.parameters == GOOD.at(32)
    assert run(InitialTrial("look", {"resolution": 64}), tried, [looked]) == GOOD.at(64)
    assert run(InitialTrial("carried", {"resolution": 64}), tried, [looked]) == FAIR.at(64)


def test_recipe_is_not_given_again_where_the_sampler_has_run_it() -> None:
    tried = [EndedTrial("Mass", 64, GOOD, 0.8), EndedTrial("Mass", 32, FAIR, 0.7)]
    assert run(InitialTrial("carried", {"resolution": 64}), tried) == FAIR.at(64)


def test_recipe_of_a_failed_trial_is_not_given_again_at_its_resolution() -> None:
    tried = [EndedTrial("Mass", 64, GOOD, 0.8), EndedTrial("Mass", 64, FAIR, 0.7)]
    assert run(InitialTrial("own", {"resolution": 32}), tried, [InitialTrial("own", GOOD.at(32))]) == FAIR.at(32)
