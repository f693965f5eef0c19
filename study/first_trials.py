"""The first trials of a label: every resolution the same number, informed by what other labels have found out.

A look at every resolution with one recipe shows where the finding shows. The label's other recipes are tried at the
smallest of those, where they are cheapest to tell apart; then every resolution gets the best of all labels' recipes, in
turns that begin where the finding shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from study.config_schema import Experiment, Search
from study.recipes import Tried, choose_recipe, own_recipes, recipe_of

SHOWS = 0.1
"""AUC above chance from which on a finding shows at a resolution; between .05 and .2 replays differ by their noise."""
MOST_OF_IT = 0.6
"""Share of the most that any resolution has shown which it must be besides; between .5 and .9 likewise."""
OWN = "own"
"""The part in which a label tries recipes of its own."""
_LOOK = "look"


@dataclass(frozen=True)
class FirstTrial:
    """A first trial, before it starts or after."""

    part: str
    """Of the plan: "look", "own", "turn 1", "turn 2" and so on."""
    parameters: dict[str, Any]
    """Those that are settled; what is lacking gets settled when the trial starts."""


def first_trials(
    experiment: Experiment, exponents: tuple[int, int], label: str, *, informed: bool = False
) -> list[FirstTrial]:
    """What a label's study begins with.

    A look with its first recipe at every resolution, the smallest first; its other recipes, as far as the budget goes;
    then turns through all resolutions. informed: others have been searched before, so the look runs their best.
    """
    search = experiment.search
    first, *others = own_recipes(experiment, exponents, label)
    ascending = sorted(search.resolutions)
    looks = [{"resolution": resolution} if informed else first.at(resolution) for resolution in ascending]
    turns = [f"turn {turn}" for turn in range(1, search.min_complete_per_resolution)]
    return [
        *(FirstTrial(_LOOK, look) for look in looks),
        *(FirstTrial(OWN, other.parameters()) for other in others[: trials_of_its_own(search)]),
        *(FirstTrial(turn, {}) for turn in turns for _ in search.resolutions),
    ]


def trials_of_its_own(search: Search) -> int:
    """How many recipes a label tries where its finding shows, beside its first: what the budget allows."""
    minimum = search.min_complete_per_resolution
    return min(minimum, search.trials - minimum * len(search.resolutions))


def complete(
    starting: FirstTrial,
    experiment: Experiment,
    exponents: tuple[int, int],
    *,
    label: str,
    tried: Sequence[Tried],
    given: Sequence[FirstTrial],
) -> dict[str, Any]:
    """All parameters of a first trial that starts.

    tried: what all labels have seen until then. given: the label's first trials whose parameters are complete.
    """
    parameters = starting.parameters
    resolution = parameters.get("resolution")
    if resolution is None:
        resolution = _choose_resolution(starting, experiment, label=label, tried=tried, given=given)
    there = {recipe_of(other.parameters) for other in given if other.parameters["resolution"] == resolution}
    there |= {each.recipe for each in tried if (each.label, each.resolution) == (label, resolution)}
    wanted = [recipe_of(parameters)] if "architecture" in parameters else []
    if starting.part == _LOOK:  # one recipe at all resolutions, whatever has ended meanwhile
        wanted += [recipe_of(other.parameters) for other in given if other.part == _LOOK]
    for recipe in wanted:
        if recipe not in there:
            return recipe.at(resolution)
    return choose_recipe(experiment, exponents, label=label, tried=tried, given=there).at(resolution)


def _choose_resolution(
    starting: FirstTrial, experiment: Experiment, *, label: str, tried: Sequence[Tried], given: Sequence[FirstTrial]
) -> int:
    """An own recipe's: where the finding shows. A turn's: the next from there up, then down.

    While none of the label's trials has ended nobody knows where it shows: own recipes are spread from the smallest
    resolution to the largest. (32 workers on 3 labels with all of them at the largest: .01 AUC worse than random search
    for a finding that shows everywhere.)
    """
    ascending = sorted(experiment.search.resolutions)
    begun = [other.parameters["resolution"] for other in given if other.part == starting.part]
    if starting.part == OWN and not any(each.label == label for each in tried):
        place = min(len(begun) / max(trials_of_its_own(experiment.search) - 1, 1), 1.0)
        return ascending[round(place * (len(ascending) - 1))]
    telling = telling_resolution(experiment, label, tried)
    if starting.part == OWN:
        return telling
    order = sorted(ascending, key=lambda resolution: (resolution < telling, abs(resolution - telling)))
    return next((resolution for resolution in order if resolution not in begun), telling)


def telling_resolution(experiment: Experiment, label: str, tried: Iterable[Tried]) -> int:
    """The smallest resolution at which the label's finding shows, since recipes are cheapest to tell apart there.

    The largest as long as it shows nowhere: if anywhere, it will show there.
    """
    shown: dict[int, float] = {}
    for each in tried:
        if each.label == label:
            shown[each.resolution] = max(each.auc - 0.5, shown.get(each.resolution, 0.0))
    enough = max(SHOWS, MOST_OF_IT * max(shown.values(), default=0.0))
    return min(
        (resolution for resolution, above_chance in shown.items() if above_chance >= enough),
        default=max(experiment.search.resolutions),
    )
