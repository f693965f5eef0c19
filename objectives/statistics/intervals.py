"""Intervals and variances of one AUC."""

import math
from statistics import NormalDist

NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)
"""Standard errors on each side of a two-sided 95 % interval."""


def auc_interval(
    auc: float, se: float, *, quantile: float = NORMAL_QUANTILE, patients: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Interval of `quantile` standard errors on each side, symmetric on the logit scale, so it stays within 0 and 1.

    patients: numbers with and without the finding. They give an interval to an AUC whose standard error is 0, for
    instance a perfect one: from the lowest to the highest AUC that is at most `quantile` of *its* expected standard
    errors away, one image a patient (Newcombe, Stat Med 2006;25:559-573, inverts Hanley & McNeil's variance in the same
    way). Without them both ends are then the AUC.
    """
    if se > 0 and 0 < auc < 1:
        centre, half_width = math.log(auc / (1 - auc)), quantile * se / (auc * (1 - auc))
        return _expit(centre - half_width), _expit(centre + half_width)
    if patients is None:
        return auc, auc
    positive, negative = patients
    low = _lowest_compatible(auc, quantile=quantile, positive_patients=positive, negative_patients=negative)
    # With the two kinds of patients exchanged an AUC becomes 1 - AUC.
    high = 1 - _lowest_compatible(1 - auc, quantile=quantile, positive_patients=negative, negative_patients=positive)
    return low, high


def expected_auc_variance(auc: float, *, positive_patients: int, negative_patients: int) -> float:
    """Variance of an AUC of this size, with one image a patient and exponential scores.

    Hanley & McNeil, Radiology 1982;143:29-36. Where positives are rare it is above that of normal scores, by a fifth in
    standard error at an AUC of .8, so it is conservative.
    """
    of_positives = 2 * auc**2 / (1 + auc) - auc**2
    of_negatives = auc / (2 - auc) - auc**2
    total = auc * (1 - auc) + (negative_patients - 1) * of_positives + (positive_patients - 1) * of_negatives
    return max(total, 0.0) / (positive_patients * negative_patients)


def satterthwaite(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variance estimates, each given as (variance, degrees of freedom).

    Satterthwaite, Biometrics Bulletin 1946;2:110-114. If all variances are 0, the degrees of freedom of the first part.
    """
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return float(parts[0][1])
    return total**2 / sum(variance**2 / degrees for variance, degrees in parts)


def _lowest_compatible(auc: float, *, quantile: float, positive_patients: int, negative_patients: int) -> float:
    from scipy.optimize import brentq  # takes 0.2 s to import, and `acuity best` imports this module

    if auc <= 0 or quantile <= 0:
        return auc

    def distance(candidate: float) -> float:
        variance = expected_auc_variance(
            candidate, positive_patients=positive_patients, negative_patients=negative_patients
        )
        return auc - candidate - quantile * math.sqrt(variance)

    nearest = auc * (1 - 1e-12)  # a perfect AUC itself solves the equation: its expected variance is 0
    return float(brentq(distance, 0.0, nearest)) if distance(nearest) < 0 else auc


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
