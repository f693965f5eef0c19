"""The plan of the initial trials: every resolution gets the same number, with recipes from earlier results."""

import dataclasses
from collections import Counter

import pytest

from acuity.study.config.schema import Experiment
from acuity.study.search.initial_design import (
    InitialTrial,
    choose_parameters,
    plan_initial_trials,
    smallest_detectable_resolution,
)
from acuity.study.search.recipes import EndedTrial, own_recipes
from support.searched_experiment import EXPERIMENT, EXPONENTS, FAIR, GOOD, POOR


def with_trials(trials: int) -> Experiment:
    return dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, trials=trials))


def test_plan_is_one_recipe_at_every_resolution_then_own_recipes_then_the_best_of_all_labels() -> None:
    trials = plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass")
    first, *others = own_recipes(EXPERIMENT, EXPONENTS, "Mass")
    assert [trial.parameters for trial in trials[:3]] == [first.at(32), first.at(64), first.at(128)], "cheapest first"
    assert [trial.parameters for trial in trials[3:5]] == [other.parameters() for other in others[:2]]
    assert [trial.part for trial in trials[5:]] == ["carried"] * 4
    assert not any(trial.parameters for trial in trials[5:]), "chosen when they start"
    assert len(plan_initial_trials(with_trials(9), EXPONENTS, "Mass")) == 9, "the smallest budget has all of them"


def test_informed_plan_leaves_the_first_recipe_open() -> None:
    trials = plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass", informed=True)
    assert [trial.parameters for trial in trials[:3]] == [{"resolution": at} for at in (32, 64, 128)]
    assert trials[3:] == plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass")[3:]


def seen(auc_by_resolution: dict[int, float], label: str = "Mass") -> list[EndedTrial]:
    return [EndedTrial(label, resolution, POOR, auc) for resolution, auc in auc_by_resolution.items()]


@pytest.mark.parametrize(
    ("aucs", "expected"),
    [
        ({}, 128),
        ({32: 0.55, 64: 0.53}, 128),  # not detectable yet: perhaps at the largest
        ({32: 0.55, 64: 0.53, 128: 0.57}, 128),
        ({32: 0.80, 64: 0.85, 128: 0.84}, 32),
        ({32: 0.61, 64: 0.75, 128: 0.95}, 128),  # the smaller ones have only a part of the gain
        ({32: 0.61, 64: 0.80, 128: 0.95}, 64),
        ({32: 0.61}, 32),
    ],
)
def test_own_recipes_run_at_the_smallest_resolution_where_the_finding_is_detectable(
    aucs: dict[int, float], expected: int
) -> None:
    assert smallest_detectable_resolution(EXPERIMENT, "Mass", seen(aucs)) == expected
    others = seen({32: 0.9}, label="Effusion")
    assert smallest_detectable_resolution(EXPERIMENT, "Mass", [*others, *seen(aucs)]) == expected, (
        "trials of another label counted"
    )


def run(starting: InitialTrial, history: list[EndedTrial], started: list[InitialTrial] | None = None) -> dict:
    return choose_parameters(starting, EXPERIMENT, EXPONENTS, label="Mass", history=history, started=started or [])


def test_trial_that_starts_gets_its_missing_parameters() -> None:
    tried = [EndedTrial("Mass", 32, GOOD, 0.8), EndedTrial("Mass", 32, FAIR, 0.7)]
    assert run(InitialTrial("own", POOR.parameters()), tried) == POOR.at(32)
    assert run(InitialTrial("look", POOR.at(128)), tried) == POOR.at(128)
    assert run(InitialTrial("own", GOOD.parameters()), tried) not in (GOOD.at(32), FAIR.at(32)), "it has run there"
    to_look = InitialTrial("look", {"resolution": 64})
    assert run(to_look, tried) == GOOD.at(64)
    assert run(to_look, tried, [InitialTrial("own", GOOD.at(64))]) == FAIR.at(64)
    assert run(to_look, tried, [InitialTrial("own", GOOD.at(32))]) == GOOD.at(64), "it was given at another resolution"


@pytest.mark.parametrize(
    ("aucs", "expected"),
    [
        ({32: 0.8, 64: 0.8, 128: 0.8}, [32, 32, 64, 128, 64, 128]),
        ({32: 0.5, 64: 0.8, 128: 0.8}, [64, 64, 128, 32, 128, 32]),
        ({32: 0.5, 64: 0.5, 128: 0.8}, [128, 128, 64, 32, 64, 32]),
    ],
)
def test_every_resolution_has_the_same_number_of_initial_trials(aucs: dict[int, float], expected: list[int]) -> None:
    given = [InitialTrial("look", POOR.at(resolution)) for resolution in (32, 64, 128)]
    for planned in plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass")[3:]:
        given.append(InitialTrial(planned.part, run(planned, seen(aucs), given)))
    assert [trial.parameters["resolution"] for trial in given[3:]] == expected
    assert Counter(trial.parameters["resolution"] for trial in given) == {32: 3, 64: 3, 128: 3}


def test_every_resolution_has_as_many_trials_although_results_change_meanwhile() -> None:
    given = [InitialTrial("look", POOR.at(resolution)) for resolution in (32, 64, 128)]
    changing = iter([{32: 0.5, 64: 0.5, 128: 0.8}, {64: 0.8, 128: 0.8}, *[{32: 0.8}] * 4])
    for planned in plan_initial_trials(EXPERIMENT, EXPONENTS, "Mass")[3:]:
        given.append(InitialTrial(planned.part, run(planned, seen(next(changing)), given)))
    assert Counter(trial.parameters["resolution"] for trial in given) == {32: 3, 64: 3, 128: 3}


def test_failed_trial_does_not_count_for_its_resolution() -> None:
    given = [InitialTrial("look", POOR.at(resolution)) for resolution in (32, 64, 128)]
    given += [InitialTrial("own", GOOD.at(32), failed=True), InitialTrial("own", FAIR.at(64))]
    assert run(InitialTrial("carried", {}), seen({32: 0.8}), given)["resolution"] == 32
    assert run(InitialTrial("carried", {}), seen({32: 0.8}), given) != GOOD.at(32), "it failed there"


def test_own_recipes_are_spread_over_the_resolutions_while_no_trial_has_ended() -> None:
    others = seen({32: 0.9}, label="Effusion")
    given: list[InitialTrial] = []
    for _ in range(3):  # one more than planned: the replacement of a failed trial
        given.append(InitialTrial("own", run(InitialTrial("own", POOR.parameters()), others, given)))
    assert [trial.parameters["resolution"] for trial in given] == [32, 128, 128]


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
    assert run(InitialTrial("carried", {}), tried, [looked])["learning_rate"] == FAIR.learning_rate


def test_recipe_is_not_given_again_where_the_sampler_has_run_it() -> None:
    tried = [EndedTrial("Mass", 64, GOOD, 0.8), EndedTrial("Mass", 32, FAIR, 0.7)]
    assert run(InitialTrial("carried", {"resolution": 64}), tried) == FAIR.at(64)
