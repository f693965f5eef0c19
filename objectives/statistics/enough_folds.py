"""Whether validation patients show a loss, and whether the networks so far give every open test its power.

No test patient is read for either. benchmarks/validity/verdict_errors.py and sequential_folds.py have the error of
tests whose networks are trained one after another by these rules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from acuity.objectives.statistics.intervals import satterthwaite_degrees
from acuity.objectives.statistics.power import difference_variance, estimate_power

_LEVEL_OF_LOSS = 0.025
"""Level of the one-sided test by which a loss on validation patients is clear."""


@dataclass(frozen=True, eq=False)
class ValidationAucs:
    """AUCs of the networks of one resolution on the validation patients."""

    aucs: NDArray[np.float64]
    """[networks], at least 2."""
    patient_variance: float
    """Variance of the AUC of one network over samples of patients."""

    @property
    def seed_variance(self) -> float:
        """Variance of the AUC of one network over seeds."""
        return float(self.aucs.var(ddof=1))


def clearly_loses(smaller: ValidationAucs, larger: ValidationAucs, *, margin: float) -> bool:
    """Whether a one-sided test shows that the smaller resolution's AUC is below the larger's by more than the margin.

    The standard error has the variances over patients, with the correlation of two resolutions assumed, and over seeds.
    """
    loss = float(larger.aucs.mean() - smaller.aucs.mean()) - margin
    if loss <= 0:
        return False
    of_patients = difference_variance(smaller.patient_variance, larger.patient_variance)
    of_seeds = [(each.seed_variance / len(each.aucs), len(each.aucs) - 1) for each in (smaller, larger)]
    degrees = satterthwaite_degrees((of_patients, math.inf), *of_seeds)
    standard_error = math.sqrt(of_patients + sum(variance for variance, _ in of_seeds))
    return loss > float(stdtrit(degrees, 1 - _LEVEL_OF_LOSS)) * standard_error


def have_power(resolutions: Sequence[ValidationAucs], *, patients: tuple[int, int], margin: float) -> bool:
    """Whether each open test between resolutions would find an equally good one adequate with 80 % power.

    resolutions: ascending, each with the same number of networks. patients: numbers of positive and negative test
    patients of these networks; too few for a verdict are not enough. The test of a resolution that clearly loses is not
    open. A single resolution has no test and never has the power.
    """
    if len(resolutions) < 2:
        return False
    networks = len(resolutions[0].aucs)
    if not estimate_power(*patients, seeds=networks).estimable:
        return False
    for position, smaller in enumerate(resolutions[:-1]):
        larger = resolutions[position + 1 :]
        if any(clearly_loses(smaller, each, margin=margin) for each in larger):
            continue
        seed_sd = math.sqrt((smaller.seed_variance + max(each.seed_variance for each in larger)) / 2)
        if not estimate_power(*patients, seed_sd=seed_sd, seeds=networks).reaches(margin):
            return False
    return True
