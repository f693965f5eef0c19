"""Training recipes: all of a trial but its resolution, and which of them the first trials of a label run.

What is a good recipe at one resolution, or for one label, is mostly a good one at another (recorded trainings: rank
correlation .65 to .99). So each label looks with one recipe at every resolution, tries the others of its own at the
smallest one where its finding shows, and every resolution then gets the best of all labels' recipes: equal effort,
informed.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.experiment import Experiment
from study.sections import Search

# In units of one trial: a recipe seen once is believed to nine tenths, so that luck counts a little less.
_RIDGE = 0.1

SHOWS = 0.1
"""AUC above chance from which on a finding shows at a resolution; between .05 and .2 replays differ by their noise."""
MOST_OF_IT = 0.6
"""Share of the most that any resolution has shown which it must be besides; between .5 and .9 likewise."""


@dataclass(frozen=True)
class Recipe:
    """What a network is trained with, whatever it sees."""

    architecture: str
    learning_rate: float
    batch_size_exponent: int | None
    """None where the batch policy leaves nothing to search."""

    def parameters(self) -> dict[str, Any]:
        """Those of a trial, without the resolution."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def at(self, resolution: int) -> dict[str, Any]:
        """The parameters of a trial."""
        return {"resolution": resolution} | self.parameters()


@dataclass(frozen=True)
class Tried:
    """A first trial that has ended."""

    label: str
    resolution: int
    recipe: Recipe
    auc: float
    """On validation patients; 0.5 where it ended without one."""


def recipe_of(parameters: Mapping[str, Any]) -> Recipe:
    """The recipe among a trial's parameters."""
    return Recipe(parameters["architecture"], parameters["learning_rate"], parameters.get("batch_size_exponent"))


def own_recipes(experiment: Experiment, exponents: tuple[int, int], label: str) -> list[Recipe]:
    """The recipes that a label tries itself: with those of the other labels they are spread over the whole space.

    One more than min_complete_per_resolution.
    """
    search, position, labels = experiment.search, experiment.labels.index(label), len(experiment.labels)
    spread = _spread((search.min_complete_per_resolution + 1) * labels, search.seed)
    low, high = (math.log(rate) for rate in search.learning_rate)
    lowest, highest = exponents
    return [
        Recipe(
            architecture=search.architectures[(turn + position) % len(search.architectures)],
            learning_rate=math.exp(low + rate * (high - low)),
            batch_size_exponent=lowest + int(batch * (highest - lowest + 1)) if search.batch == "search" else None,
        )
        for turn, (rate, batch) in enumerate(spread[position::labels])
    ]


def first_trials(experiment: Experiment, exponents: tuple[int, int], label: str) -> list[dict[str, Any]]:
    """Parameters of the trials enqueued first; what lacks a resolution, or a recipe, gets it when it starts.

    The label's first recipe at every resolution, the smallest first; its other ones, as far as the budget goes, where
    they are cheapest to tell apart; then turns through all resolutions, each with the best recipe of any label.
    """
    search = experiment.search
    first, *others = own_recipes(experiment, exponents, label)
    ascending = sorted(search.resolutions)
    return [
        *(first.at(resolution) for resolution in ascending),
        *(other.parameters() for other in others[: trials_of_its_own(search)]),
        *(
            {"resolution": resolution}
            for _ in range(search.min_complete_per_resolution - 1)
            for resolution in ascending[::-1]
        ),
    ]


def trials_of_its_own(search: Search) -> int:
    """How many recipes a label tries where its finding shows, beside its first: what the budget allows."""
    minimum = search.min_complete_per_resolution
    return min(minimum, search.trials - minimum * len(search.resolutions))


def complete(
    enqueued: dict[str, Any],
    experiment: Experiment,
    exponents: tuple[int, int],
    *,
    label: str,
    tried: Sequence[Tried],
    given: Mapping[int, Container[Recipe]],
) -> dict[str, Any]:
    """All parameters of a first trial that starts: tried is what all labels have seen until then.

    given: what this label has run, or begun, at each resolution.
    """
    if "resolution" not in enqueued:
        return recipe_of(enqueued).at(telling_resolution(experiment, label, tried))
    if "architecture" in enqueued:
        return enqueued
    there = given.get(enqueued["resolution"], ())
    return choose_recipe(experiment, exponents, label=label, tried=tried, given=there).at(enqueued["resolution"])


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


def choose_recipe(
    experiment: Experiment, exponents: tuple[int, int], *, label: str, tried: Sequence[Tried], given: Container[Recipe]
) -> Recipe:
    """The best recipe by what all labels have seen that is not among those given at this resolution already.

    With nothing seen yet, or all of it given, one that no trial has had; the best again where there is none.
    """
    ranked = rank_recipes(tried)
    labels = [label, *(other for other in experiment.labels if other != label)]
    untried = [recipe for owner in labels for recipe in own_recipes(experiment, exponents, owner)]
    return next((recipe for recipe in [*ranked, *untried] if recipe not in given), [*ranked, *untried][0])


def rank_recipes(tried: Iterable[Tried]) -> list[Recipe]:
    """Best first: an AUC is what its label and resolution allow plus what its recipe adds, by ridge regression.

    Labels and resolutions that show nothing differ little between recipes, so they hardly count.
    """
    tried = list(tried)
    cells = {cell: i for i, cell in enumerate(dict.fromkeys((each.label, each.resolution) for each in tried))}
    recipes = {recipe: i for i, recipe in enumerate(dict.fromkeys(each.recipe for each in tried), start=len(cells))}
    design = np.zeros((len(tried), len(cells) + len(recipes)))
    for row, each in zip(design, tried, strict=True):
        row[cells[each.label, each.resolution]] = row[recipes[each.recipe]] = 1
    penalty = np.diag([1e-6] * len(cells) + [_RIDGE] * len(recipes))
    effects = np.linalg.solve(design.T @ design + penalty, design.T @ np.array([each.auc for each in tried]))
    return sorted(recipes, key=lambda recipe: -effects[recipes[recipe]])


def _spread(points: int, seed: int) -> NDArray[np.float64]:
    """Quantiles [points, 2] of rate and batch, each dimension's strata hit once (Latin hypercube, McKay 1979)."""
    generator = np.random.default_rng(seed)
    return np.stack([(generator.permutation(points) + 0.5) / points for _ in range(2)], axis=1)
