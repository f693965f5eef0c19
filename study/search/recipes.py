"""Choose and rank recipes: the parameters of a training except the resolution.

A recipe that is good at one resolution or for one label is mostly good at another (rank correlation 0.65 to 0.99 in
recorded trainings).
"""

import math
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acuity.study.config.schema import Experiment, Search

_RIDGE = 0.1
"""In trials: the effect of a recipe with one trial is shrunk to about nine tenths, against noise."""


@dataclass(frozen=True)
class Recipe:
    """Architecture, learning rate and batch size of a training."""

    architecture: str
    learning_rate: float
    batch_size_exponent: int | None
    """None where the batch size is not searched."""

    def parameters(self) -> dict[str, Any]:
        """A trial's parameters without the resolution."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def at(self, resolution: int) -> dict[str, Any]:
        """The parameters of a trial."""
        return {"resolution": resolution} | self.parameters()


@dataclass(frozen=True)
class EndedTrial:
    """The recipe and the result of an ended trial."""

    label: str
    """The label; for another experiment its name, a tab and the label."""
    resolution: int
    recipe: Recipe
    auc: float
    """On validation patients; 0.5 where the trial has none."""


def recipe_of(parameters: Mapping[str, Any]) -> Recipe:
    """The recipe among a trial's parameters."""
    return Recipe(parameters["architecture"], parameters["learning_rate"], parameters.get("batch_size_exponent"))


def count_own_rounds(search: Search) -> int:
    """Number of initial trials at each resolution with a recipe of the label that no other resolution has had."""
    return search.min_complete_per_resolution // 2


def own_recipes(experiment: Experiment, exponents: tuple[int, int], label: str) -> list[Recipe]:
    """A label's own recipes: as many as its initial trials need, and more than it has trials at one resolution.

    The own recipes of all labels are spread over the search space together. They differ from those of the experiments
    in learn_from.
    """
    search, position, labels = experiment.search, experiment.labels.index(label), len(experiment.labels)
    seed = [search.seed, *(zlib.crc32(name.encode()) for name in search.learn_from)]
    count = 1 + max(search.min_complete_per_resolution, count_own_rounds(search) * len(search.resolutions))
    spread = _latin_hypercube(count * labels, seed)
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


def is_in_search_space(recipe: Recipe, experiment: Experiment, exponents: tuple[int, int]) -> bool:
    """Whether the experiment's search may choose the recipe."""
    search, exponent = experiment.search, recipe.batch_size_exponent
    slowest, fastest = search.learning_rate
    if recipe.architecture not in search.architectures or not slowest <= recipe.learning_rate <= fastest:
        return False
    if exponent is None or search.batch != "search":
        return exponent is None and search.batch != "search"
    return exponents[0] <= exponent <= exponents[1]


def choose_recipe(
    experiment: Experiment,
    exponents: tuple[int, int],
    *,
    label: str,
    history: Sequence[EndedTrial],
    used: Container[Recipe],
) -> Recipe:
    """The best recipe of all labels that is not in used: the label's recipes at this resolution.

    Where all are used, the first unused own recipe of a label, this label's first. Where these are used too, the best
    recipe once more.
    """
    labels = [label, *(other for other in experiment.labels if other != label)]
    own = [recipe for owner in labels for recipe in own_recipes(experiment, exponents, owner)]
    candidates = [*rank_recipes(history), *own]
    return next((recipe for recipe in candidates if recipe not in used), candidates[0])


def rank_recipes(history: Iterable[EndedTrial]) -> list[Recipe]:
    """Recipes, the best first, by ridge regression: AUC = effect of label and resolution + effect of the recipe.

    Where a finding is not detectable the AUCs of recipes differ little, so these trials have little influence. The
    system is reduced to labels and resolutions (Schur complement), since there are as many recipes as trials.
    """
    history = list(history)
    cells = {cell: i for i, cell in enumerate(dict.fromkeys((trial.label, trial.resolution) for trial in history))}
    recipes = {recipe: i for i, recipe in enumerate(dict.fromkeys(trial.recipe for trial in history))}
    counts, sums = np.zeros((2, len(cells), len(recipes)))
    for trial in history:
        at = cells[trial.label, trial.resolution], recipes[trial.recipe]
        counts[at] += 1
        sums[at] += trial.auc
    shrunk = counts / (counts.sum(axis=0) + _RIDGE)
    complement = np.diag(counts.sum(axis=1) + 1e-6) - shrunk @ counts.T
    cell_effects = np.linalg.solve(complement, sums.sum(axis=1) - shrunk @ sums.sum(axis=0))
    recipe_effects = (sums.sum(axis=0) - cell_effects @ counts) / (counts.sum(axis=0) + _RIDGE)
    return sorted(recipes, key=lambda recipe: -recipe_effects[recipes[recipe]])


def _latin_hypercube(points: int, seed: Sequence[int]) -> NDArray[np.float64]:
    """Quantiles [points, 2] of learning rate and batch size, one per stratum of each dimension (McKay 1979)."""
    generator = np.random.default_rng(seed)
    return np.stack([(generator.permutation(points) + 0.5) / points for _ in range(2)], axis=1)
