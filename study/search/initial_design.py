"""Plan the initial trials of a label: the same number at every resolution, with recipes that did well for other labels.

The plan has rounds of one trial at every resolution. The first round trains one recipe of the label: this compares the
resolutions with equal tuning. The next rounds train recipes that the label has not had. The last rounds train the best
recipes of all labels. A resolution with more trials would have a higher best AUC by chance alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from acuity.study.config.schema import Experiment
from acuity.study.search.recipes import EndedTrial, choose_recipe, count_own_rounds, own_recipes, recipe_of

_LOOK = "look"
"""The part of the plan with one recipe at every resolution."""
_OWN = "own"
"""The part of the plan with another recipe of the label at each resolution."""
_CARRIED = "carried"
"""The part of the plan with the best recipes of all labels."""


@dataclass(frozen=True)
class InitialTrial:
    """An initial trial, before or after its start."""

    part: str
    """Part of the plan: "look", "own" or "carried"."""
    parameters: dict[str, Any]
    """The resolution, and the recipe where it is known. A missing recipe is chosen when the trial starts."""


def plan_initial_trials(
    experiment: Experiment, exponents: tuple[int, int], label: str, *, informed: bool = False
) -> list[InitialTrial]:
    """The initial trials of a label's study, in their order: min_complete_per_resolution at every resolution.

    Each round begins at the smallest resolution. informed: earlier results exist, so their best recipe replaces the
    label's first recipe.
    """
    search = experiment.search
    first, *others = own_recipes(experiment, exponents, label)
    ascending = sorted(search.resolutions)
    looks = [{"resolution": resolution} if informed else first.at(resolution) for resolution in ascending]
    own_rounds = count_own_rounds(search)
    own = [other.at(resolution) for other, resolution in zip(others, ascending * own_rounds, strict=False)]
    carried_rounds = search.min_complete_per_resolution - 1 - own_rounds
    carried = [{"resolution": resolution} for resolution in ascending * carried_rounds]
    return [
        InitialTrial(part, parameters)
        for part, trials in ((_LOOK, looks), (_OWN, own), (_CARRIED, carried))
        for parameters in trials
    ]


def choose_parameters(
    starting: InitialTrial,
    experiment: Experiment,
    exponents: tuple[int, int],
    *,
    label: str,
    history: Sequence[EndedTrial],
    started: Sequence[InitialTrial],
) -> dict[str, Any]:
    """All parameters of an initial trial that starts without a recipe.

    history: ended trials of all labels. started: the label's initial trials that have all parameters.
    """
    resolution = starting.parameters["resolution"]
    used = {recipe_of(other.parameters) for other in started if other.parameters["resolution"] == resolution}
    used |= {trial.recipe for trial in history if (trial.label, trial.resolution) == (label, resolution)}
    if starting.part == _LOOK:  # one recipe at all resolutions, even if a better one is known by now
        for other in started:
            if other.part == _LOOK and recipe_of(other.parameters) not in used:
                return recipe_of(other.parameters).at(resolution)
    return choose_recipe(experiment, exponents, label=label, history=history, used=used).at(resolution)
