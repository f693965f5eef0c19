"""The plan of the first trials: every resolution gets the same number, informed by what has been seen before."""

import dataclasses
from collections import Counter

import pytest

from acuity.study.config.schema import Experiment
from acuity.study.search.initial_design import FirstTrial, complete, first_trials, telling_resolution
from acuity.study.search.recipes import Tried, own_recipes
from support.searched_experiment import EXPERIMENT, EXPONENTS, FAIR, GOOD, POOR


def with_trials(trials: int) -> Experiment:
    return dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, trials=trials))


def test_label_looks_at_every_resolution_then_tries_its_own_recipes_then_runs_the_best() -> None:
    trials = first_trials(EXPERIMENT, EXPONENTS, "Mass")
    first, *others = own_recipes(EXPERIMENT, EXPONENTS, "Mass")
    assert [trial.parameters for trial in trials[:3]] == [first.at(32), first.at(64), first.at(128)], "cheapest first"
    assert [trial.parameters for trial in trials[3:6]] == [other.parameters() for other in others]
    assert [trial.part for trial in trials[6:]] == ["turn 1"] * 3 + ["turn 2"] * 3
    assert not any(trial.parameters for trial in trials[6:]), "settled when they start"


def test_informed_look_leaves_its_recipe_to_what_was_found_before() -> None:
    trials = first_trials(EXPERIMENT, EXPONENTS, "Mass", informed=True)
    assert [trial.parameters for trial in trials[:3]] == [{"resolution": at} for at in (32, 64, 128)]
    assert trials[3:] == first_trials(EXPERIMENT, EXPONENTS, "Mass")[3:]


@pytest.mark.parametrize("more", [0, 1, 2])
def test_small_budget_has_the_same_number_at_each_resolution_before_recipes_of_its_own(more: int) -> None:
    parts = Counter(trial.part for trial in first_trials(with_trials(9 + more), EXPONENTS, "Mass"))
    assert parts == Counter({"look": 3, "own": more, "turn 1": 3, "turn 2": 3})


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


def run(starting: FirstTrial, tried: list[Tried], given: list[FirstTrial] | None = None) -> dict:
    return complete(starting, EXPERIMENT, EXPONENTS, label="Mass", tried=tried, given=given or [])


def test_trial_that_starts_gets_what_it_lacks() -> None:
    tried = [Tried("Mass", 32, GOOD, 0.8), Tried("Mass", 32, FAIR, 0.7)]
    assert run(FirstTrial("own", POOR.parameters()), tried) == POOR.at(32)
    assert run(FirstTrial("look", POOR.at(128)), tried) == POOR.at(128)
    assert run(FirstTrial("own", GOOD.parameters()), tried) not in (GOOD.at(32), FAIR.at(32)), "it has run there"
    to_look = FirstTrial("look", {"resolution": 64})
    assert run(to_look, tried) == GOOD.at(64)
    assert run(to_look, tried, [FirstTrial("own", GOOD.at(64))]) == FAIR.at(64)
    assert run(to_look, tried, [FirstTrial("own", GOOD.at(32))]) == GOOD.at(64), "it was given at another resolution"


@pytest.mark.parametrize(
    ("aucs", "expected"),
    [
        ({32: 0.8, 64: 0.8, 128: 0.8}, [32, 64, 128]),
        ({32: 0.5, 64: 0.8, 128: 0.8}, [64, 128, 32]),
        ({32: 0.5, 64: 0.5, 128: 0.8}, [128, 64, 32]),
        ({}, [128, 64, 32]),
    ],
)
def test_turn_begins_where_the_finding_shows_and_goes_up_then_down(aucs: dict[int, float], expected: list[int]) -> None:
    own = FirstTrial("own", FAIR.at(128))
    for turn in ("turn 1", "turn 2"):
        given = [own]
        for _ in EXPERIMENT.search.resolutions:
            given.append(FirstTrial(turn, run(FirstTrial(turn, {}), seen(aucs), given)))
        assert [trial.parameters["resolution"] for trial in given[1:]] == expected


def test_every_resolution_has_its_turn_although_the_finding_shows_elsewhere_meanwhile() -> None:
    given: list[FirstTrial] = []
    for aucs in ({32: 0.5, 64: 0.5, 128: 0.8}, {64: 0.8, 128: 0.8}, {32: 0.8}):
        given.append(FirstTrial("turn 1", run(FirstTrial("turn 1", {}), seen(aucs), given)))
    assert [trial.parameters["resolution"] for trial in given] == [128, 64, 32]


def test_own_recipes_are_spread_over_the_resolutions_while_nothing_has_ended() -> None:
    others = seen({32: 0.9}, label="Effusion")
    given: list[FirstTrial] = []
    for _ in range(4):  # one more than planned: a failed one's replacement
        given.append(FirstTrial("own", run(FirstTrial("own", POOR.parameters()), others, given)))
    assert [trial.parameters["resolution"] for trial in given] == [32, 64, 128, 128]


def test_informed_look_keeps_its_recipe_although_another_one_does_better_meanwhile() -> None:
    looked = FirstTrial("look", run(FirstTrial("look", {"resolution": 32}), [Tried("pilot/Mass", 32, GOOD, 0.8)]))
    tried = [Tried("pilot/Mass", 32, GOOD, 0.8), Tried("Effusion", 64, FAIR, 0.9), Tried("Effusion", 64, GOOD, 0.6)]
    assert looked.parameters == GOOD.at(32)
    assert run(FirstTrial("look", {"resolution": 64}), tried, [looked]) == GOOD.at(64)
    assert run(FirstTrial("turn 1", {}), tried, [looked])["learning_rate"] == FAIR.learning_rate


def test_recipe_is_not_given_again_where_the_sampler_has_run_it() -> None:
    tried = [Tried("Mass", 64, GOOD, 0.8), Tried("Mass", 32, FAIR, 0.7)]
    assert run(FirstTrial("turn 2", {"resolution": 64}), tried) == FAIR.at(64)
