"""Plan the initial trials of a label: the same number at every resolution, with recipes that did well for other labels.

The label's first recipe is trained at every resolution: this measures at which resolutions the finding is detectable.
The label's other recipes are trained at the smallest of these, where recipes are compared at the lowest cost. Then
every other resolution is trained with the best recipes of all labels until all have the same number of trials. A
resolution with more trials would have a higher best AUC by chance alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from acuity.study.config.schema import Experiment, Search
from acuity.study.search.recipes import EndedTrial, choose_recipe, own_recipes, recipe_of

DETECTABLE_GAIN = 0.1
"""AUC above 0.5 from which a finding is detectable. Replays of the search with 0.05 to 0.2 differ only by noise."""
DETECTABLE_SHARE = 0.6
"""Share of the largest AUC above 0.5 that is also required. Replays with 0.5 to 0.9 differ only by noise."""
OWN = "own"
"""The part of the plan with the label's other own recipes."""
_LOOK = "look"
"""The part of the plan with one recipe at every resolution."""
_CARRIED = "carried"
"""The part of the plan with the best recipes of all labels."""


@dataclass(frozen=True)
class InitialTrial:
    """An initial trial, before or after its start."""

    part: str
    """Part of the plan: "look", "own" or "carried"."""
    parameters: dict[str, Any]
    """The known parameters. The missing ones are chosen when the trial starts."""
    failed: bool = False
    """Whether it failed, so that another one replaces it."""


def plan_initial_trials(
    experiment: Experiment, exponents: tuple[int, int], label: str, *, informed: bool = False
) -> list[InitialTrial]:
    """The initial trials of a label's study, in their order: min_complete_per_resolution at every resolution.

    The label's first recipe at every resolution, the smallest first; its other recipes; then the best recipes of all
    labels at the resolutions with the fewest trials. informed: earlier results exist, so their best recipe replaces the
    label's first recipe.
    """
    search = experiment.search
    first, *others = own_recipes(experiment, exponents, label)
    ascending = sorted(search.resolutions)
    looks = [{"resolution": resolution} if informed else first.at(resolution) for resolution in ascending]
    own = others[: _count_own(search)]
    carried = len(own) * (len(ascending) - 1)
    return [
        *(InitialTrial(_LOOK, look) for look in looks),
        *(InitialTrial(OWN, other.parameters()) for other in own),
        *(InitialTrial(_CARRIED, {}) for _ in range(carried)),
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
    """All parameters of an initial trial that starts.

    history: ended trials of all labels. started: the label's initial trials that have all parameters.
    """
    parameters = starting.parameters
    resolution = parameters.get("resolution")
    if resolution is None:
        resolution = _choose_resolution(starting, experiment, label=label, history=history, started=started)
    used = {recipe_of(other.parameters) for other in started if other.parameters["resolution"] == resolution}
    used |= {trial.recipe for trial in history if (trial.label, trial.resolution) == (label, resolution)}
    wanted = [recipe_of(parameters)] if "architecture" in parameters else []
    if starting.part == _LOOK:  # one recipe at all resolutions, even if a better one is known by now
        wanted += [recipe_of(other.parameters) for other in started if other.part == _LOOK]
    for recipe in wanted:
        if recipe not in used:
            return recipe.at(resolution)
    return choose_recipe(experiment, exponents, label=label, history=history, used=used).at(resolution)


def smallest_detectable_resolution(experiment: Experiment, label: str, history: Iterable[EndedTrial]) -> int:
    """The smallest resolution at which the finding is detectable: recipes are compared there at the lowest cost.

    The largest resolution while the finding is detectable nowhere.
    """
    gains: dict[int, float] = {}
    for trial in history:
        if trial.label == label:
            gains[trial.resolution] = max(trial.auc - 0.5, gains.get(trial.resolution, 0.0))
    required = max(DETECTABLE_GAIN, DETECTABLE_SHARE * max(gains.values(), default=0.0))
    return min(
        (resolution for resolution, gain in gains.items() if gain >= required),
        default=max(experiment.search.resolutions),
    )


def _choose_resolution(
    starting: InitialTrial,
    experiment: Experiment,
    *,
    label: str,
    history: Sequence[EndedTrial],
    started: Sequence[InitialTrial],
) -> int:
    """For an own recipe the smallest detectable resolution; for others the one with the fewest initial trials.

    Of equals, the next above the smallest detectable resolution, then below it. Before a trial of the label has ended
    this resolution is unknown: own recipes are then spread from the smallest resolution to the largest. (All of them at
    the largest, with 32 workers on 3 labels: AUC 0.01 worse than random search for a finding that is detectable
    everywhere.)
    """
    ascending = sorted(experiment.search.resolutions)
    if starting.part == OWN and not any(trial.label == label for trial in history):
        begun = sum(other.part == OWN for other in started)
        position = min(begun / max(_count_own(experiment.search) - 1, 1), 1.0)
        return ascending[round(position * (len(ascending) - 1))]
    smallest = smallest_detectable_resolution(experiment, label, history)
    if starting.part == OWN:
        return smallest
    trials = Counter(other.parameters["resolution"] for other in started if not other.failed)
    return min(
        ascending,
        key=lambda resolution: (trials[resolution], resolution < smallest, abs(resolution - smallest)),
    )


def _count_own(search: Search) -> int:
    """Number of own recipes that a label tries beside its first one."""
    return search.min_complete_per_resolution - 1
