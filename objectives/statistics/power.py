"""Precision and power that a number of test patients allows, computed before any training."""

import math
from dataclasses import dataclass

from scipy.special import expit, logit, stdtrit

from acuity.objectives.statistics.intervals import hanley_mcneil_variance, satterthwaite_degrees

MIN_POSITIVE_PATIENTS = 30
"""A label with fewer positive test patients is not estimable."""
MIN_NEGATIVE_PATIENTS = 10
"""A label with fewer negative test patients is not estimable."""
_AUC = 0.8
CORRELATION = 0.8
"""Assumed correlation of the AUCs of two resolutions over samples of patients."""
SEED_SD = 0.020
"""Assumed standard deviation of one AUC over seeds. Confirmations on NIH's radiographs measured .019 to .021. The SD of
the ratio of two AUCs in Sabottke & Spieler (.012 to .015) implies .008 for larger numbers of patients."""


def difference_variance(first: float, second: float) -> float:
    """Variance over patients of the difference of two AUCs from their variances, with the assumed correlation."""
    return first + second - 2 * CORRELATION * math.sqrt(first * second)


@dataclass(frozen=True)
class PowerEstimate:
    """Precision and power for the test patients of a label."""

    positive_patients: int
    auc_half_width: float | None
    """Half the width of the AUC's interval. None with fewer than 2 positive or 2 negative patients."""
    margin: float | None
    """The smallest margin at which the noninferiority test of an equally good resolution has the power. None as above.
    """
    estimable: bool

    def reaches(self, margin: float) -> bool:
        """Whether the test of an equally good resolution has the power at this margin."""
        return self.margin is not None and self.margin <= margin


def estimate_power(
    positive_patients: int,
    negative_patients: int,
    *,
    auc: float = _AUC,
    correlation: float = CORRELATION,
    seed_sd: float = SEED_SD,
    seeds: int = 5,
    power: float = 0.8,
    level: float = 0.05,
) -> PowerEstimate:
    """Half-width of the AUC's interval and smallest noninferiority margin, with one image per patient.

    auc: the expected AUC. correlation: between the AUCs of two resolutions, each averaged over seeds, over samples of
    test patients. seed_sd: standard deviation of one AUC over seeds. seeds: at least 2. level: of the one-sided test.
    The level of the interval is 1 - level.

    Margin: (t_(1-level) + t_power) * SE at a true difference of 0 (Julious, Stat Med 2004;23:1921-1986). Variance of a
    difference of correlated AUCs: Hanley & McNeil, Radiology 1983;148:839-843.
    """
    assert seeds >= 2
    if min(positive_patients, negative_patients) < 2:
        return PowerEstimate(positive_patients=positive_patients, auc_half_width=None, margin=None, estimable=False)
    patient_variance = hanley_mcneil_variance(
        auc, positive_patients=positive_patients, negative_patients=negative_patients
    )
    seed_variance = seed_sd**2 / seeds
    degrees = min(positive_patients, negative_patients) - 1
    logit_half_width = float(
        stdtrit(satterthwaite_degrees((patient_variance, degrees), (seed_variance, seeds - 1)), 1 - level / 2)
    )
    logit_half_width *= math.sqrt(patient_variance + seed_variance) / (auc * (1 - auc))
    difference_variance = 2 * (1 - correlation) * patient_variance
    difference_degrees = satterthwaite_degrees(
        (difference_variance, degrees), (seed_variance, seeds - 1), (seed_variance, seeds - 1)
    )
    standard_errors = float(stdtrit(difference_degrees, 1 - level) + stdtrit(difference_degrees, power))
    return PowerEstimate(
        positive_patients=positive_patients,
        auc_half_width=float(expit(logit(auc) + logit_half_width) - expit(logit(auc) - logit_half_width)) / 2,
        margin=standard_errors * math.sqrt(difference_variance + 2 * seed_variance),
        estimable=positive_patients >= MIN_POSITIVE_PATIENTS and negative_patients >= MIN_NEGATIVE_PATIENTS,
    )
