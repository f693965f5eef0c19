"""Claim: near an AUC of 1, and with 10 patients of the rarer side, the noninferiority test errs in at most 5 %.

Scores are binormal, with several correlated images per patient and seeds of different skill. The smaller resolution
loses exactly the margin ("wrongly shown") or nothing ("shown if equal", the power). The plain t test at the estimated
AUCs is judged on the same scores. In "unequal", positive scores vary 1.6 times as much as negative ones.

Run: python benchmarks/validity/near_one.py [--repetitions 3000] (10 minutes on one free core).
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from acuity.objectives.statistics.difference import difference_standard_error, t_statistic
from acuity.objectives.statistics.estimates import estimate_resolutions, make_auc_pair

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

Floats = NDArray[np.float64]
LEVEL, MARGIN = 0.05, 0.02
_SKILL_SD, _OWN_SHARE, _SEED_SHARE = 0.03, 0.15, 0.15


@dataclass(frozen=True)
class Cell:
    """Test patients and the AUC of the larger resolution."""

    positive: int
    negative: int
    auc: float
    seeds: int = 5
    images: float = 2.0
    """Mean number of images of a patient, all positive or all negative."""
    positive_sd: float = 1.0


CELLS = {
    "40/360, .985": Cell(40, 360, 0.985),
    "40/360, .99": Cell(40, 360, 0.99),
    "40/360, .99, 3 seeds": Cell(40, 360, 0.99, seeds=3, images=1),
    "40/360, .985, unequal": Cell(40, 360, 0.985, positive_sd=1.6),
    "72/300, .99": Cell(72, 300, 0.99),
    "40/120, .98": Cell(40, 120, 0.98, images=1),
    "157/600, .985": Cell(157, 600, 0.985),
    "200/40, .99": Cell(200, 40, 0.99, images=1),
    "72/10, .95": Cell(72, 10, 0.95),
    "150/10, .8": Cell(150, 10, 0.80),
    "150/10, .9": Cell(150, 10, 0.90),
    "150/10, .985": Cell(150, 10, 0.985),
    "150/10, .99": Cell(150, 10, 0.99),
    "600/10, .96": Cell(600, 10, 0.96),
    "600/10, .985": Cell(600, 10, 0.985, images=1),
    "40/360, .8": Cell(40, 360, 0.80),
    "40/360, .9": Cell(40, 360, 0.90),
}


def simulate(cell: Cell, *, loss: float, repetitions: int) -> tuple[float, float]:
    """Share of repetitions in which Acuity's test and the plain t test succeed."""
    generator = np.random.default_rng(1)
    shown = plain = 0
    for _ in range(repetitions):
        pair = make_auc_pair(
            estimate_resolutions(*_draw(cell, {64: cell.auc - loss, 128: cell.auc}, generator)), 64, reference=128
        )
        shown += bool(student.sf(*t_statistic(pair, value=-MARGIN)) <= LEVEL)
        se, degrees = difference_standard_error(pair)
        plain += bool(se > 0 and (pair.difference + MARGIN) / se >= student.ppf(1 - LEVEL, degrees))
    return shown / repetitions, plain / repetitions


def _draw(
    cell: Cell, aucs: dict[int, float], generator: np.random.Generator
) -> tuple[NDArray[np.int64], dict[int, Floats], NDArray[np.intp]]:
    count = cell.positive + cell.negative
    patients = np.repeat(np.arange(count), np.minimum(generator.geometric(1 / cell.images, count), 20))
    targets = (patients < cell.positive).astype(np.int64)

    def share(variance: float, networks: int) -> Floats:
        of_patients = generator.standard_normal((networks, count))[:, patients]
        of_images = generator.standard_normal((networks, patients.size))
        return math.sqrt(variance / 2) * (of_patients + of_images)

    common = share(1 - _OWN_SHARE - _SEED_SHARE, 1)
    spread = np.where(targets == 1, cell.positive_sd, 1.0)
    scores = {}
    for resolution, auc in aucs.items():
        mean = norm.ppf(auc) * math.sqrt(1 + cell.positive_sd**2 + _SKILL_SD**2)
        skill = mean + _SKILL_SD * generator.standard_normal((cell.seeds, 1))
        scores[resolution] = spread * (common + share(_OWN_SHARE, 1) + share(_SEED_SHARE, cell.seeds)) + skill * targets
    return targets, scores, patients


def main() -> None:
    """Simulate each cell, print the table and the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=3000)
    repetitions = parser.parse_args().repetitions
    print("| patients +/-, AUC | wrongly shown | plain t | shown if equal | plain t |\n|---|---|---|---|---|")
    rows = {}
    for name, cell in CELLS.items():
        wrongly, power = (simulate(cell, loss=loss, repetitions=repetitions) for loss in (MARGIN, 0.0))
        rows[name] = {"wrongly_shown": wrongly[0], "plain_t": wrongly[1], "shown_if_equal": power[0]}
        print(f"| {name} | {wrongly[0]:.3f} | {wrongly[1]:.3f} | {power[0]:.3f} | {power[1]:.3f} |", flush=True)
    worst, most = (
        max(row["wrongly_shown"] for row in rows.values()),
        LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / repetitions),
    )
    goals = [make_goal("wrongly_shown_highest", worst, f"<= {most:.4f}", met=worst <= most, digits=4)]
    print_result("near_one", n=repetitions, goals=goals, cells=rows)


if __name__ == "__main__":
    main()
