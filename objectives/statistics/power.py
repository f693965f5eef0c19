"""The precision and the power that a test part allows, computed before any training."""

import math
from dataclasses import dataclass

from scipy.special import expit, logit
from scipy.stats import t as student

from acuity.objectives.statistics.intervals import expected_auc_variance, satterthwaite

FEWEST_POSITIVE_PATIENTS = 30
"""Below this many positive test patients a label is not estimable."""
_AUC = 0.8
_CORRELATION = 0.8
# Sabottke & Spieler's ratios of two AUCs have an SD of .012 to .015 over seeds: .86 * .0135 / sqrt(2) for one AUC.
_SEED_SD = 0.008


@dataclass(frozen=True)
class PowerEstimate:
    """The precision and the power that a label's test patients allow."""

    positive_patients: int
    auc_half_width: float | None
    """Half the width of the AUC's interval; None, as the margin, with fewer than 2 patients of either kind."""
    margin: float | None
    """The smallest non-inferiority margin that the test shows for an equally good resolution, at the given power."""
    estimable: bool


def estimate_power(
    positive_patients: int,
    negative_patients: int,
    *,
    auc: float = _AUC,
    correlation: float = _CORRELATION,
    seed_sd: float = _SEED_SD,
    seeds: int = 5,
    power: float = 0.8,
    level: float = 0.05,
) -> PowerEstimate:
    """Precision and non-inferiority margin for these numbers of test patients, with one image a patient.

    auc: the expected AUC. correlation: of two resolutions' AUCs (averaged over seeds) over draws of test patients.
    seed_sd: standard deviation of one AUC over seeds. seeds: at least 2. level: of the one-sided test; the level of the
    interval is 1 - level.

    Margin: (t_(1-level) + t_power) * SE at a true difference of 0 (Julious, Stat Med 2004;23:1921-1986); variance of a
    difference of correlated AUCs: Hanley & McNeil, Radiology 1983;148:839-843.
    """
    assert seeds >= 2
    if min(positive_patients, negative_patients) < 2:
        return PowerEstimate(positive_patients=positive_patients, auc_half_width=None, margin=None, estimable=False)
    patients = expected_auc_variance(auc, positive_patients=positive_patients, negative_patients=negative_patients)
    chance = seed_sd**2 / seeds
    degrees = min(positive_patients, negative_patients) - 1
    half = float(student.ppf(1 - level / 2, satterthwaite((patients, degrees), (chance, seeds - 1))))
    half *= math.sqrt(patients + chance) / (auc * (1 - auc))
    between = 2 * (1 - correlation) * patients
    both = satterthwaite((between, degrees), (chance, seeds - 1), (chance, seeds - 1))
    needed = float(student.ppf(1 - level, both) + student.ppf(power, both))
    return PowerEstimate(
        positive_patients=positive_patients,
        auc_half_width=float(expit(logit(auc) + half) - expit(logit(auc) - half)) / 2,
        margin=needed * math.sqrt(between + 2 * chance),
        estimable=positive_patients >= FEWEST_POSITIVE_PATIENTS,
    )
