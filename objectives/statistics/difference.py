"""The difference between two AUCs of the same patients: standard error, test statistic and interval."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import logit, stdtrit

from acuity.objectives.statistics.intervals import expected_auc_variance, satterthwaite

_FARTHEST = 1e6
# Distances below the AUC, as shares of it, for the search of a limit: the statistic rises, then falls again far away.
_SEARCH = np.geomspace(2**-12, 0.98, 24)


@dataclass(frozen=True)
class Contrast:
    """AUCs and variances of the difference between a first AUC and a second, each averaged over its seeds."""

    aucs: tuple[float, float]
    patient_variances: tuple[float, float]
    patient_covariance: float
    patient_degrees: float
    """Degrees of freedom of the difference's variance over test patients."""
    seed_variances: tuple[float, float]
    """s^2 / S of each."""
    seeds: tuple[int, int]
    positive_patients: int
    negative_patients: int

    @property
    def difference(self) -> float:
        """The first AUC less the second."""
        return self.aucs[0] - self.aucs[1]


def difference_spread(contrast: Contrast) -> tuple[float, float]:
    """Standard error of the difference and Satterthwaite's degrees of freedom."""
    return _spread(contrast, weights=(1.0, -1.0))


def t_statistic(contrast: Contrast, *, value: float) -> tuple[float, float]:
    """How many standard errors the difference is above a value, and the degrees of freedom of this t statistic.

    The value is added to the lower AUC, and the two are compared on the logit scale, because an AUC near 1 can vary
    more downwards than upwards. At AUCs of .98 and .96 and 34 positive patients, a plain t test of non-inferiority at
    5 % is wrong in 11 % of cases, this one in 6 %; at .95 and .93 in 7 and 5 % (benchmarks/validity/coverage.py).
    """
    if value > contrast.difference:
        statistic, degrees = _excess(_swap(contrast), value=-value)
        return -statistic, degrees
    return _excess(contrast, value=value)


def difference_limits(contrast: Contrast, *, level: float) -> tuple[float, float]:
    """Two-sided limits of the difference: the values at which `t_statistic` reaches its quantile.

    The interval therefore always agrees with the test.
    """
    probability = (1 + level) / 2
    return _lower_limit(contrast, probability=probability), -_lower_limit(_swap(contrast), probability=probability)


def _excess(contrast: Contrast, *, value: float) -> tuple[float, float]:
    first, lowered = contrast.aucs[0], contrast.aucs[1] + value
    if 0 < first < 1 and 0 < lowered < 1:
        weights = 1 / (first * (1 - first)), -1 / (lowered * (1 - lowered))
        se, degrees = _spread(contrast, weights=weights)
        if se > 0:
            return float(logit(first) - logit(lowered)) / se, degrees
    return _excess_without_spread(contrast, lowered=lowered)


def _excess_without_spread(contrast: Contrast, *, lowered: float) -> tuple[float, float]:
    """For AUCs without variance, such as perfect ones: the expected variance of an AUC at the tested value."""
    expected = expected_auc_variance(
        min(max(lowered, 0.0), 1.0),
        positive_patients=contrast.positive_patients,
        negative_patients=contrast.negative_patients,
    )
    own = contrast.patient_variances[0] or expected
    widened = replace(contrast, patient_variances=(own, contrast.patient_variances[1]))
    se, degrees = difference_spread(widened)
    gap = contrast.aucs[0] - lowered
    return (gap / se if se > 0 else math.copysign(math.inf, gap) if gap else 0.0), degrees


def _lower_limit(contrast: Contrast, *, probability: float) -> float:
    first, second = contrast.aucs

    def distance(lowered: float) -> float:
        statistic, degrees = _excess(contrast, value=lowered - second)
        return min(statistic, _FARTHEST) - float(stdtrit(degrees, probability))

    nearer = first
    for share in _SEARCH:
        farther = first * (1 - share)
        if distance(farther) >= 0:
            return float(brentq(distance, farther, nearer)) - second
        nearer = farther
    return -second


def _spread(contrast: Contrast, *, weights: tuple[float, float]) -> tuple[float, float]:
    (first, second), (of_first, of_second) = weights, contrast.patient_variances
    patients = first**2 * of_first + second**2 * of_second + 2 * first * second * contrast.patient_covariance
    patients = max(patients, 0.0)
    chances = [weight**2 * variance for weight, variance in zip(weights, contrast.seed_variances, strict=True)]
    degrees = satterthwaite(
        (patients, contrast.patient_degrees),
        *((chance, seeds - 1) for chance, seeds in zip(chances, contrast.seeds, strict=True)),
    )
    return math.sqrt(patients + sum(chances)), degrees


def _swap(contrast: Contrast) -> Contrast:
    return replace(
        contrast,
        aucs=contrast.aucs[::-1],
        patient_variances=contrast.patient_variances[::-1],
        seed_variances=contrast.seed_variances[::-1],
        seeds=contrast.seeds[::-1],
    )
