"""Intervals and variances of one AUC."""

import math
from statistics import NormalDist

NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)
"""Number of standard errors on each side of the estimate in a two-sided 95 % interval."""
CHANCE = 0.5
"""AUC of a network that has learned nothing."""


def auc_interval(
    auc: float, se: float, *, quantile: float = NORMAL_QUANTILE, patients: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Wald interval on the logit scale, which keeps both limits within 0 and 1.

    quantile: number of standard errors on each side. patients: numbers of positive and negative patients. An AUC whose
    standard error is 0, for instance a perfect AUC, needs them. Its interval contains each AUC that differs from it by
    at most `quantile` of the expected standard errors of that other AUC, with one image per patient (Newcombe, Stat Med
    2006;25:559-573, inverts Hanley & McNeil's variance in the same way). Without the numbers both limits are the AUC.
    """
    if se > 0 and 0 < auc < 1:
        centre, half_width = math.log(auc / (1 - auc)), quantile * se / (auc * (1 - auc))
        return _expit(centre - half_width), _expit(centre + half_width)
    if patients is None:
        return auc, auc
    positive, negative = patients
    low = _score_limit(auc, quantile=quantile, positive_patients=positive, negative_patients=negative)
    # Exchanging positive and negative patients changes an AUC to 1 - AUC.
    high = 1 - _score_limit(1 - auc, quantile=quantile, positive_patients=negative, negative_patients=positive)
    return low, high


def hanley_mcneil_variance(auc: float, *, positive_patients: int, negative_patients: int) -> float:
    """Expected variance of an AUC, with one image per patient and exponentially distributed scores.

    Hanley & McNeil, Radiology 1982;143:29-36. Where positives are rare, it is larger than the variance for normally
    distributed scores (the standard error by a fifth at an AUC of .8), so it is conservative.
    """
    q1 = auc / (2 - auc)  # probability that two positive images both score above a negative image
    q2 = 2 * auc**2 / (1 + auc)  # probability that a positive image scores above two negative images
    total = auc * (1 - auc) + (negative_patients - 1) * (q2 - auc**2) + (positive_patients - 1) * (q1 - auc**2)
    return max(total, 0.0) / (positive_patients * negative_patients)


def satterthwaite_degrees(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variance estimates.

    Satterthwaite, Biometrics Bulletin 1946;2:110-114.

    parts: (variance, degrees of freedom) of each estimate. A known variance has infinitely many degrees of freedom. If
    all variances are 0, the first part's degrees of freedom are returned.
    """
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return float(parts[0][1])
    spread = sum(variance**2 / degrees for variance, degrees in parts)
    return total**2 / spread if spread else math.inf


def _score_limit(auc: float, *, quantile: float, positive_patients: int, negative_patients: int) -> float:
    """The lowest AUC that is at most `quantile` of its expected standard errors below `auc`."""
    from scipy.optimize import brentq  # takes 0.2 s to import, and `acuity best` imports this module

    if auc <= 0 or quantile <= 0:
        return auc

    def distance(candidate: float) -> float:
        variance = hanley_mcneil_variance(
            candidate, positive_patients=positive_patients, negative_patients=negative_patients
        )
        return auc - candidate - quantile * math.sqrt(variance)

    nearest = auc * (1 - 1e-12)  # a perfect AUC solves the equation too, because its expected variance is 0
    return float(brentq(distance, 0.0, nearest)) if distance(nearest) < 0 else auc


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
