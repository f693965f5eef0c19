"""The first trials of a label: the same number at every resolution, with recipes that other labels did well with.

First one recipe is trained at every resolution: this measures at which resolutions the finding is detectable. The
label's other recipes are tried at the smallest of these, where recipes are compared at the lowest cost. Then every
resolution is trained with the best recipe of all labels, in turns that begin at that resolution.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from acuity.study.config.schema import Experiment, Search
from acuity.study.search.recipes import Tried, choose_recipe, own_recipes, recipe_of

SHOWS = 0.1
"""AUC above 0.5 from which a finding is detectable. Replays of the search with 0.05 to 0.2 differ only by noise."""
MOST_OF_IT = 0.6
"""Share of the largest AUC above 0.5 that is also required. Replays with 0.5 to 0.9 differ only by noise."""
OWN = "own"
"""The part in which a label tries its other recipes."""
_LOOK = "look"


@dataclass(frozen=True)
class FirstTrial:
    """A first trial, before it starts or after."""

    part: str
    """Of the plan: "look", "own", "turn 1", "turn 2" and so on."""
    parameters: dict[str, Any]
    """Those that are known; the missing ones are chosen when the trial starts."""


def first_trials(
    experiment: Experiment, exponents: tuple[int, int], label: str, *, informed: bool = False
) -> list[FirstTrial]:
    """The first trials of a label's study, in their order.

    Its first recipe at every resolution, the smallest first; its other recipes, as far as the budget allows; then turns
    through all resolutions. informed: earlier results exist, so their best recipe takes the place of the first recipe.
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
    """How many recipes a label tries beside its first, within the budget."""
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

    tried: ended trials of all labels. given: the label's first trials whose parameters are complete.
    """
    parameters = starting.parameters
    resolution = parameters.get("resolution")
    if resolution is None:
        resolution = _choose_resolution(starting, experiment, label=label, tried=tried, given=given)
    there = {recipe_of(other.parameters) for other in given if other.parameters["resolution"] == resolution}
    there |= {each.recipe for each in tried if (each.label, each.resolution) == (label, resolution)}
    wanted = [recipe_of(parameters)] if "architecture" in parameters else []
    if starting.part == _LOOK:  # one recipe at all resolutions, even if better ones are known by now
        wanted += [recipe_of(other.parameters) for other in given if other.part == _LOOK]
    for recipe in wanted:
        if recipe not in there:
            return recipe.at(resolution)
    return choose_recipe(experiment, exponents, label=label, tried=tried, given=there).at(resolution)


def _choose_resolution(
    starting: FirstTrial, experiment: Experiment, *, label: str, tried: Sequence[Tried], given: Sequence[FirstTrial]
) -> int:
    """For an own recipe the telling resolution. For a turn the next resolution above it, then below it.

    Before a trial of the label has ended the telling resolution is unknown: own recipes are then spread from the
    smallest resolution to the largest. (All of them at the largest, with 32 workers on 3 labels: AUC 0.01 worse than
    random search for a finding that is detectable everywhere.)
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
    """The smallest resolution at which the finding is detectable: recipes are compared there at the lowest cost.

    The largest resolution while the finding is detectable nowhere.
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
