"""Comparisons of all pairs of resolutions, corrected for multiple comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from acuity.objectives.statistics.estimates import Difference, ResolutionEstimates, estimate_difference


@dataclass(frozen=True)
class Comparison:
    """A difference between two resolutions, with its p value corrected for all pairs of the label."""

    difference: Difference
    p_value_holm: float


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected by Holm's method, in the given order (Holm, Scand J Stat 1979;6:65-70)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(p_values) else scaled
    return [float(value) for value in adjusted]


def compare_pairs(estimates: ResolutionEstimates, *, level: float = 0.95) -> tuple[Comparison, ...]:
    """Compare each pair of resolutions (the smaller minus the larger), two-sided, with Holm's correction.

    level: of the interval of each difference. The intervals are not corrected.
    """
    differences = [
        estimate_difference(estimates, smaller, reference=larger, level=level)
        for smaller, larger in combinations(estimates.resolutions, 2)
    ]
    adjusted = adjust_holm([difference.p_value for difference in differences])
    return tuple(map(Comparison, differences, adjusted))


def find_not_worse(comparisons: Sequence[Comparison], *, level: float = 0.05) -> tuple[int, ...]:
    """Resolutions that are not shown to be worse than any other, ascending.

    The best resolution is among them with a probability of about 1 - level.
    """
    resolutions, worse = set[int](), set[int]()
    for comparison in comparisons:
        difference = comparison.difference
        resolutions |= {difference.resolution, difference.reference}
        if comparison.p_value_holm <= level:
            worse.add(difference.resolution if difference.difference < 0 else difference.reference)
    return tuple(sorted(resolutions - worse))
