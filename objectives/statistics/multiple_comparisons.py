"""All pairs of resolutions compared, with p values corrected for multiple comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from acuity.objectives.statistics.estimates import Difference, Measured, estimate_difference


@dataclass(frozen=True)
class Comparison:
    """A difference between two resolutions, and its p value corrected for all pairs of the label."""

    difference: Difference
    p_value_holm: float


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for multiple comparisons, in the given order (Holm, Scand J Stat 1979;6:65-70)."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0) if len(p_values) else stepped
    return [float(value) for value in adjusted]


def compare_all(measured: Measured, *, level: float = 0.95) -> tuple[Comparison, ...]:
    """Each pair of resolutions, the smaller less the larger, two-sided, corrected within the label by Holm.

    level: of each difference's interval, which is not corrected.
    """
    differences = [
        estimate_difference(measured, smaller, reference=larger, level=level)
        for smaller, larger in combinations(measured.resolutions, 2)
    ]
    adjusted = adjust_holm([difference.p_value for difference in differences])
    return tuple(map(Comparison, differences, adjusted))


def find_not_worse(comparisons: Sequence[Comparison], *, level: float = 0.05) -> tuple[int, ...]:
    """Resolutions that are not shown to be worse than another, ascending.

    The best resolution is among them with a probability of about 1 - level.
    """
    resolutions, beaten = set[int](), set[int]()
    for comparison in comparisons:
        difference = comparison.difference
        resolutions |= {difference.resolution, difference.reference}
        if comparison.p_value_holm <= level:
            beaten.add(difference.resolution if difference.difference < 0 else difference.reference)
    return tuple(sorted(resolutions - beaten))
