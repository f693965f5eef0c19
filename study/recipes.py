"""Training recipes: all of a trial but its resolution, and which of them the first trials of a label run.

What is a good recipe at one resolution, or for one label, is mostly a good one at another (recorded trainings: rank
correlation .65 to .99). So each label tries a few of its own at the largest resolution, where a finding shows if it
shows anywhere, and every resolution then gets the best of all labels' recipes: equal effort, informed.
"""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.experiment import Experiment
from study.sections import Search

# In units of one trial: a recipe seen once is believed to nine tenths, so that luck counts a little less.
_RIDGE = 0.1


@dataclass(frozen=True)
class Recipe:
    """What a network is trained with, whatever it sees."""

    architecture: str
    learning_rate: float
    batch_size_exponent: int | None
    """None where the batch policy leaves nothing to search."""

    def at(self, resolution: int) -> dict[str, Any]:
        """The parameters of a trial."""
        return {"resolution": resolution} | {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Tried:
    """A first trial that has ended."""

    label: str
    resolution: int
    recipe: Recipe
    auc: float
    """On validation patients; 0.5 where it ended without one."""


def own_recipes(experiment: Experiment, exponents: tuple[int, int], label: str) -> list[Recipe]:
    """The recipes that a label tries itself: with those of the other labels they are spread over the whole space."""
    search, position, labels = experiment.search, experiment.labels.index(label), len(experiment.labels)
    spread = _spread(search.min_complete_per_resolution * labels, search.seed)
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
    """Parameters of the trials enqueued first; where there is only a resolution, the recipe is chosen when they start.

    The label's own recipes at the largest resolution, then as many turns through all resolutions, the largest one as
    far as the budget goes: the best recipe may be another label's.
    """
    *others, largest = sorted(experiment.search.resolutions)
    again = turns_again(experiment.search)
    return [
        *(recipe.at(largest) for recipe in own_recipes(experiment, exponents, label)),
        *(
            {"resolution": resolution}
            for turn in range(experiment.search.min_complete_per_resolution)
            for resolution in ([largest] if turn < again else []) + others[::-1]
        ),
    ]


def turns_again(search: Search) -> int:
    """How many of the best recipes run at the largest resolution too, beside a label's own: what the budget allows."""
    turns = search.min_complete_per_resolution
    return min(turns, search.trials - turns * len(search.resolutions))


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
