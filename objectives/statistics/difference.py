"""Difference between two AUCs on the same patients: standard error, t statistic and interval."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from acuity.objectives.statistics.intervals import hanley_mcneil_variance, satterthwaite_degrees

_MAX_STATISTIC = 1e6
# The search for a limit evaluates these distances below the AUC, as shares of the AUC. It cannot bisect from 0 to the
# AUC: with growing distance the statistic rises, then falls.
_DISTANCES = np.geomspace(2**-12, 0.98, 24)


@dataclass(frozen=True)
class AucPair:
    """Two AUCs on the same patients, each averaged over its seeds, with their variances."""

    aucs: tuple[float, float]
    patient_variances: tuple[float, float]
    patient_covariance: float
    patient_degrees: float
    """Degrees of freedom of the difference's variance over samples of test patients."""
    seed_variances: tuple[float, float]
    """s^2 / S of each AUC."""
    seeds: tuple[int, int]
    positive_patients: int
    negative_patients: int

    @property
    def difference(self) -> float:
        """The first AUC minus the second AUC."""
        return self.aucs[0] - self.aucs[1]


def difference_standard_error(pair: AucPair) -> tuple[float, float]:
    """Standard error of the difference, and Satterthwaite's degrees of freedom."""
    return _standard_error(pair, weights=(1.0, -1.0))


def t_statistic(pair: AucPair, *, value: float) -> tuple[float, float]:
    """t statistic of the difference against a value, and its degrees of freedom.

    The standard error is the larger of two: the one at the estimated AUCs, and the one at two AUCs that have the tested
    difference and the same mean. For the second, the standard error of an AUC is proportional to AUC * (1 - AUC), which
    is constant on the logit scale. An AUC near 1 that is too high by chance has a standard error that is too small, and
    the second standard error corrects this. With 40 positive patients and AUCs of .99 and .97, the type I error of a
    noninferiority test at 5 % is 5 % with the larger one and 12 % with the first one alone
    (benchmarks/validity/near_one.py).
    """
    if value > pair.difference:
        statistic, degrees = _oriented_t_statistic(_exchanged(pair), value=-value)
        return -statistic, degrees
    return _oriented_t_statistic(pair, value=value)


def difference_interval(pair: AucPair, *, level: float) -> tuple[float, float]:
    """Two-sided interval of the difference: the values at which `t_statistic` reaches its quantile.

    The interval therefore always agrees with the test.
    """
    probability = (1 + level) / 2
    return _lower_limit(pair, probability=probability), -_lower_limit(_exchanged(pair), probability=probability)


def _oriented_t_statistic(pair: AucPair, *, value: float) -> tuple[float, float]:
    """t statistic against a value that is not above the difference."""
    lowered = pair.aucs[1] + value
    if 0 < pair.aucs[0] < 1 and 0 < lowered < 1:
        half = value / 2
        middle = min(max(sum(pair.aucs) / 2, abs(half)), 1 - abs(half))  # both AUCs are between 0 and 1
        weights = [
            _spread(at_null) / _spread(auc) if _spread(auc) else 1.0
            for auc, at_null in zip(pair.aucs, (middle + half, middle - half), strict=True)
        ]
        se, degrees = max(
            difference_standard_error(pair), _standard_error(pair, weights=(weights[0], -weights[1]))
        )  # the larger standard error
        if se > 0:
            return (pair.aucs[0] - lowered) / se, degrees
    return _t_statistic_without_variance(pair, lowered=lowered)


def _spread(auc: float) -> float:
    """Variance of a comparison of two images. The standard error of an AUC is taken as proportional to it."""
    return max(auc * (1 - auc), 0.0)


def _t_statistic_without_variance(pair: AucPair, *, lowered: float) -> tuple[float, float]:
    """t statistic of AUCs without variance, such as perfect AUCs, from the expected variance at the tested value."""
    expected = hanley_mcneil_variance(
        min(max(lowered, 0.0), 1.0),
        positive_patients=pair.positive_patients,
        negative_patients=pair.negative_patients,
    )
    first_variance = pair.patient_variances[0] or expected
    se, degrees = difference_standard_error(
        replace(pair, patient_variances=(first_variance, pair.patient_variances[1]))
    )
    gap = pair.aucs[0] - lowered
    return (gap / se if se > 0 else math.copysign(math.inf, gap) if gap else 0.0), degrees


def _lower_limit(pair: AucPair, *, probability: float) -> float:
    first, second = pair.aucs

    def distance(lowered: float) -> float:
        statistic, degrees = _oriented_t_statistic(pair, value=lowered - second)
        return min(statistic, _MAX_STATISTIC) - float(stdtrit(degrees, probability))

    upper = first
    for share in _DISTANCES:
        lower = first * (1 - share)
        if distance(lower) >= 0:
            return float(brentq(distance, lower, upper)) - second
        upper = lower
    return -second


def _standard_error(pair: AucPair, *, weights: tuple[float, float]) -> tuple[float, float]:
    """Standard error of the weighted sum of the two AUCs, and Satterthwaite's degrees of freedom."""
    (first, second), (first_variance, second_variance) = weights, pair.patient_variances
    patient_variance = first**2 * first_variance + second**2 * second_variance
    patient_variance = max(patient_variance + 2 * first * second * pair.patient_covariance, 0.0)
    seed_variances = [weight**2 * variance for weight, variance in zip(weights, pair.seed_variances, strict=True)]
    degrees = satterthwaite_degrees(
        (patient_variance, pair.patient_degrees),
        *((variance, seeds - 1) for variance, seeds in zip(seed_variances, pair.seeds, strict=True)),
    )
    return math.sqrt(patient_variance + sum(seed_variances)), degrees


def _exchanged(pair: AucPair) -> AucPair:
    return replace(
        pair,
        aucs=pair.aucs[::-1],
        patient_variances=pair.patient_variances[::-1],
        seed_variances=pair.seed_variances[::-1],
        seeds=pair.seeds[::-1],
    )
