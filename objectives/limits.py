"""How far an AUC may lie from the one seen: limits at a quantile, expected variance, degrees of freedom."""

import math

from scipy.optimize import brentq
from scipy.special import expit, logit


def auc_limits(
    auc: float, se: float, *, quantile: float, positive_patients: int, negative_patients: int
) -> tuple[float, float]:
    """Limits of an AUC `quantile` standard errors away, symmetric on the logit scale so that they stay within 0 and 1.

    An AUC whose components do not vary at all (a perfect one) still is one of finitely many patients: its limits are
    the lowest and highest AUC that it is not further away from than `quantile` of *their* standard errors, patients as
    units (Newcombe, Stat Med 2006;25:559-573, inverts Hanley & McNeil's variance so).
    """
    if se > 0 and 0 < auc < 1:
        half = quantile * se / (auc * (1 - auc))
        return float(expit(logit(auc) - half)), float(expit(logit(auc) + half))
    low = _lowest_compatible(
        auc, quantile=quantile, positive_patients=positive_patients, negative_patients=negative_patients
    )
    # Seen from the other side, where patients without the finding are the ones to be found.
    high = 1 - _lowest_compatible(
        1 - auc, quantile=quantile, positive_patients=negative_patients, negative_patients=positive_patients
    )
    return low, high


def expected_auc_variance(auc: float, *, positive_patients: int, negative_patients: int) -> float:
    """Variance that an AUC of this size is expected to have, one image a patient and exponential scores.

    Hanley & McNeil, Radiology 1982;143:29-36. Where positives are rare it is above that of normal scores (by a fifth
    in standard error at an AUC of .8): it errs on the safe side.
    """
    of_positives = 2 * auc**2 / (1 + auc) - auc**2
    of_negatives = auc / (2 - auc) - auc**2
    total = auc * (1 - auc) + (negative_patients - 1) * of_positives + (positive_patients - 1) * of_negatives
    return max(total, 0.0) / (positive_patients * negative_patients)


def satterthwaite(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variance estimates, each given as (variance, degrees of freedom).

    Satterthwaite, Biometrics Bulletin 1946;2:110-114. With nothing but zeros, those of the first part.
    """
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return float(parts[0][1])
    return total**2 / sum(variance**2 / degrees for variance, degrees in parts)


def _lowest_compatible(auc: float, *, quantile: float, positive_patients: int, negative_patients: int) -> float:
    if auc <= 0 or quantile <= 0:
        return auc

    def distance(candidate: float) -> float:
        variance = expected_auc_variance(
            candidate, positive_patients=positive_patients, negative_patients=negative_patients
        )
        return auc - candidate - quantile * math.sqrt(variance)

    nearest = auc * (1 - 1e-12)  # a perfect AUC itself solves the equation: its expected variance is 0
    return float(brentq(distance, 0.0, nearest)) if distance(nearest) < 0 else auc
