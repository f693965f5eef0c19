"""Claim: with 3 of 4 folds trained at least, a test errs in at most 5 %, though training ends at a small variance.

One test at the boundary: the smaller resolution truly loses the margin. Test patients are unlimited, so that networks
alone vary. AUCs are normal. Folds are trained one after another, as in `acuity confirm`, until the variance over
networks gives 80 % power for equally good resolutions. The test uses the same variance (Welch's t test). With 2 of 4
folds at least, and with more folds, the error is higher. These designs are shown for comparison.

Run: python benchmarks/validity/sequential_folds.py [--repetitions 200000] (a minute on one free core).
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

LEVEL, POWER, MARGIN = 0.05, 0.8, 0.02
SEED_SDS = (0.004, 0.006, 0.008, 0.010, 0.012, 0.015, 0.020)
DESIGNS = {"3 to 4 folds": (3, 4), "4 folds": (4, 4), "2 to 4 folds": (2, 4), "3 to 5 folds": (3, 5)}
"""Folds that are trained at least and at most. The first is the default."""
_DEFAULT = next(iter(DESIGNS))


def error(least: int, most: int, *, seed_sd: float, repetitions: int) -> tuple[float, float]:
    """Rate of tests that find the smaller resolution adequate, and mean number of trained folds."""
    generator = np.random.default_rng(0)
    small, large = seed_sd * generator.standard_normal((2, repetitions, most))
    small -= MARGIN
    errs, running, folds = np.zeros(repetitions, bool), np.ones(repetitions, bool), np.full(repetitions, most)
    for count in range(least, most + 1):
        variances = [networks[:, :count].var(axis=1, ddof=1) for networks in (small, large)]
        ends = running & ((count == most) | _have_power(np.add(*variances) / 2, count))
        difference = small[:, :count].mean(axis=1) - large[:, :count].mean(axis=1)
        statistic = (difference + MARGIN) / np.sqrt(np.add(*variances) / count)
        degrees = np.add(*variances) ** 2 / np.add(*np.square(variances)) * (count - 1)
        errs[ends] = statistic[ends] > student.isf(LEVEL, degrees[ends])
        folds[ends] = count
        running &= ~ends
    return float(errs.mean()), float(folds.mean())


def _have_power(variances: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The rule of `estimate_power` without a variance over patients."""
    degrees = 2 * (count - 1)
    needed = (student.isf(LEVEL, degrees) + student.ppf(POWER, degrees)) * np.sqrt(2 * variances / count)
    reached: NDArray[np.bool_] = needed <= MARGIN
    return reached


def main() -> None:
    """Print a row for each SD over seeds, then the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=200_000)
    repetitions = parser.parse_args().repetitions
    print("| SD over seeds | " + " | ".join(f"{name}: error | folds" for name in DESIGNS) + " |")
    rows = []
    for seed_sd in SEED_SDS:
        found = {
            name: error(least, most, seed_sd=seed_sd, repetitions=repetitions)
            for name, (least, most) in DESIGNS.items()
        }
        rows.append({"seed_sd": seed_sd} | {name: [round(each, 4) for each in pair] for name, pair in found.items()})
        cells = [f"{rate:.3f} | {folds:.2f}" for rate, folds in found.values()]
        print(f"| {seed_sd:g} | {' | '.join(cells)} |", flush=True)
    half = 2 * math.sqrt(LEVEL * (1 - LEVEL) / repetitions)
    highest = max(row[_DEFAULT][0] for row in rows)
    goal = make_goal(
        f"error_highest, {_DEFAULT}",
        highest,
        f"<= {LEVEL + half:.4f}",
        met=highest <= LEVEL + half,
        low=highest - half,
        high=highest + half,
        digits=4,
    )
    print_result("sequential_folds", n=repetitions, goals=[goal], rows=rows)


if __name__ == "__main__":
    main()
