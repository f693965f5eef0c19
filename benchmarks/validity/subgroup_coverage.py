"""Claim: 95 % intervals of cross-fitted subgroups cover 95 % with the seed variance of all validation patients.

The subgroup is a part of the patients, such as women. "own" takes the variance over seeds from the few validation
patients of the subgroup. It gives no interval where these are all positive or all negative. Networks differ in skill
overall and, in some cells, on the subgroup too. In one cell they differ more than twice as much on it as overall, and
the claim does not hold. Scores are binormal, with one image per patient and three folds.

Run: python benchmarks/validity/subgroup_coverage.py [--repetitions 2000] (two minutes on one free core).
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.cross_fitting import ImageScores, estimate_cross_fitted
from acuity.objectives.statistics.estimates import estimate_auc

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

Floats = NDArray[np.float64]
_FOLDS, _AUC, _SEED_SHARE = 3, 0.78, 0.2


@dataclass(frozen=True)
class Cell:
    """Patients of the subgroup, and how much networks differ."""

    test: tuple[int, int]
    """Positive and negative test patients of a fold."""
    validation: tuple[int, int]
    """Mean numbers of positive and negative validation patients."""
    seed_sd: float = 0.011
    """Standard deviation of the AUC over networks."""
    own_seed_sd: float = 0.0
    """Further standard deviation over networks of the AUC of the subgroup alone."""
    others: tuple[int, int] = (40, 160)
    """Positive and negative validation patients outside the subgroup."""


CELLS = {
    "42+ test, 3/12 validation": Cell((14, 60), (3, 12)),
    "42+ test, 1/6 validation": Cell((14, 60), (1, 6)),
    "42+ test, 3/12 validation, seed SD .023": Cell((14, 60), (3, 12), seed_sd=0.023),
    "42+ test, 3/12 validation, own SD .011": Cell((14, 60), (3, 12), own_seed_sd=0.011),
    "180+ test, 10/50 validation": Cell((60, 300), (10, 50)),
    "180+ test, 10/50 validation, own SD .011": Cell((60, 300), (10, 50), own_seed_sd=0.011),
    "180+ test, 10/50 validation, own SD .023": Cell((60, 300), (10, 50), own_seed_sd=0.023),
}
_LARGE_OWN_SD = "180+ test, 10/50 validation, own SD .023"


def simulate(cell: Cell, validation: Literal["own", "all"], *, repetitions: int) -> dict[str, float]:
    """Share of repetitions with an interval, share of these that cover the AUC, and mean width."""
    generator, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(repetitions):
        overall, on_group = (_shift(sd) * generator.standard_normal(_FOLDS) for sd in (cell.seed_sd, cell.own_seed_sd))
        folds = [_score(cell.test, (0, 0), overall[[k]], on_group[[k]], generator) for k in range(_FOLDS)]
        group = tuple(map(int, generator.poisson(cell.validation)))
        scored = _score(group, cell.others if validation == "all" else (0, 0), overall, on_group, generator)
        try:
            found = estimate_auc(estimate_cross_fitted(folds, validation=scored), 32)
        except InputError:
            continue
        covered += found.auc_low <= _AUC <= found.auc_high
        widths.append(found.auc_high - found.auc_low)
    return {"estimated": len(widths) / repetitions, "covered": covered / len(widths), "width": float(np.mean(widths))}


def _shift(sd: float) -> float:
    """Standard deviation of the mean score of positives that gives this standard deviation of the AUC."""
    return sd * math.sqrt(2) / float(norm.pdf(norm.ppf(_AUC)))


def _score(
    group: tuple[int, ...], others: tuple[int, int], overall: Floats, on_group: Floats, generator: np.random.Generator
) -> ImageScores:
    """Scores of the subgroup's patients and of others, by each network."""
    targets = np.repeat([1, 0, 1, 0], [*group, *others])
    in_group = np.arange(len(targets)) < sum(group)
    mean = norm.ppf(_AUC) * math.sqrt(2) + overall[:, None] + on_group[:, None] * in_group
    common = math.sqrt(1 - _SEED_SHARE) * generator.standard_normal(len(targets))
    own = math.sqrt(_SEED_SHARE) * generator.standard_normal((len(overall), len(targets)))
    return ImageScores(targets, np.arange(len(targets)), {32: mean * targets + common + own})


def main() -> None:
    """Simulate each cell, print the table and the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    print("| subgroup | all: covered | width | own: estimated | covered | width |\n|---|---|---|---|---|---|")
    rows = {}
    for name, cell in CELLS.items():
        of_all = simulate(cell, "all", repetitions=repetitions)
        of_own = simulate(cell, "own", repetitions=repetitions)
        rows[name] = {"all": of_all, "own": of_own}
        figures = of_all["covered"], of_all["width"], *of_own.values()
        print(f"| {name} | {' | '.join(f'{each:.3f}' for each in figures)} |", flush=True)
    worst = min(row["all"]["covered"] for name, row in rows.items() if name != _LARGE_OWN_SD)
    least = 0.95 - 2 * math.sqrt(0.95 * 0.05 / repetitions)
    goals = [make_goal("covered_lowest", worst, f">= {least:.4f}", met=worst >= least, digits=4)]
    print_result("subgroup_coverage", n=repetitions, goals=goals, cells=rows)


if __name__ == "__main__":
    main()
