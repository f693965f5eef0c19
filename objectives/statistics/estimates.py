"""AUCs of resolutions, their differences and ratios, with intervals over samples of test patients and seeds.

The AUC of a resolution is a mean over S seeds. Its variance has two parts. The first part is the variance over samples
of test patients: clustered DeLong on the components averaged over seeds. The second part is the variance over seeds:
s^2 / S, where s is the standard deviation over the seeds. All resolutions share the test patients, which makes
differences more precise. Seeds are not paired.

s^2 is estimated on a finite number of test patients, so it includes the interaction of seed and patients. The first
part contains 1/S of that interaction too. The excess is kept: with 34 positive patients the type I error of a one-sided
5 % test is 4 to 5 % with it, and 6 to 7 % without it (Obuchowski & Rockette, Commun Stat Simul Comput 1995;24:285-308;
benchmarks/validity/coverage.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag
from scipy.stats import t as student

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.delong import (
    DelongComponents,
    combine,
    covariance,
    degrees_of_freedom,
    delong_components,
)
from acuity.objectives.statistics.difference import AucPair, difference_interval, difference_standard_error, t_statistic
from acuity.objectives.statistics.intervals import auc_interval, satterthwaite_degrees

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ResolutionEstimates:
    """AUCs of several resolutions on the same test patients, and their covariance."""

    resolutions: tuple[int, ...]
    """Ascending."""
    aucs: tuple[float, ...]
    """AUC of each resolution on the test patients, averaged over its trainings."""
    seed_aucs: tuple[tuple[float, ...], ...]
    """AUC of each training of each resolution. All are of the same patients, so that their variance is over seeds: the
    test patients, or the validation patients of a cross-fitted confirmation."""
    patient_covariance: Floats
    """[R, R], of the AUCs averaged over seeds, over samples of test patients."""
    patient_degrees: Floats
    """[R, R], degrees of freedom of the variances over samples of test patients: of the AUCs on the diagonal, of the
    differences elsewhere."""
    positive_patients: int
    negative_patients: int

    def auc(self, resolution: int) -> float:
        """The AUC averaged over seeds."""
        return self.aucs[self.position(resolution)]

    def position(self, resolution: int) -> int:
        """Index of the resolution. InputError where it is missing."""
        if resolution not in self.resolutions:
            known = ", ".join(map(str, self.resolutions))
            raise InputError(f"{resolution} px was not confirmed. There are: {known}")
        return self.resolutions.index(resolution)


@dataclass(frozen=True)
class AucEstimate:
    """The AUC of a resolution, averaged over seeds, with its interval."""

    resolution: int
    auc: float
    auc_low: float
    auc_high: float
    se: float
    degrees_of_freedom: float
    seeds: int
    seed_sd: float
    """Standard deviation of the AUC over seeds."""


@dataclass(frozen=True)
class Difference:
    """AUC of a resolution minus the AUC of a reference."""

    resolution: int
    reference: int
    difference: float
    difference_low: float
    difference_high: float
    se: float
    degrees_of_freedom: float
    p_value: float
    """Of the two-sided test of no difference, not corrected for multiple comparisons."""


@dataclass(frozen=True)
class Ratio:
    """AUC of a resolution divided by the AUC of a reference, with its standard deviation over seeds."""

    resolution: int
    reference: int
    ratio: float
    seed_sd: float


def estimate_resolutions(
    targets: ArrayLike, scores: Mapping[int, ArrayLike], patients: ArrayLike
) -> ResolutionEstimates:
    """AUCs of resolutions from the scores of each seed on the same test images.

    targets: [N] of 1 and 0. scores: resolution -> [S, N], one row per seed, where S may differ between resolutions.
    patients: [N]. InputError with fewer than 2 seeds, 2 positive patients or 2 negative patients.
    """
    resolutions = tuple(sorted(scores))
    networks = [np.asarray(scores[resolution], dtype=np.float64) for resolution in resolutions]
    for resolution, rows in zip(resolutions, networks, strict=True):
        if len(rows) < 2:
            raise InputError(
                f"{resolution} px has {len(rows)} seed, need at least 2 for the variance over seeds: raise --seeds"
            )
    seeds = [len(rows) for rows in networks]
    components = delong_components(targets, np.concatenate(networks), patients)
    averaged = combine(components, averaging_weights(seeds))
    return ResolutionEstimates(
        resolutions=resolutions,
        aucs=tuple(map(float, averaged.aucs)),
        seed_aucs=tuple(tuple(map(float, aucs)) for aucs in np.split(components.aucs, np.cumsum(seeds)[:-1])),
        patient_covariance=covariance(averaged),
        patient_degrees=patient_degrees(averaged),
        positive_patients=components.positive_patients,
        negative_patients=components.negative_patients,
    )


def estimate_auc(estimates: ResolutionEstimates, resolution: int, *, level: float = 0.95) -> AucEstimate:
    """The AUC of a resolution with its interval over samples of test patients and seeds.

    Satterthwaite's degrees of freedom, with S - 1 for the seeds. The interval is symmetric on the logit scale.
    """
    position = estimates.position(resolution)
    aucs = estimates.seed_aucs[position]
    auc = estimates.auc(resolution)
    patient_variance, seed_variance = float(estimates.patient_covariance[position, position]), _seed_variance(aucs)
    degrees = satterthwaite_degrees(
        (patient_variance, float(estimates.patient_degrees[position, position])),
        (seed_variance, len(aucs) - 1),
    )
    se = math.sqrt(patient_variance + seed_variance)
    low, high = auc_interval(
        auc,
        se,
        quantile=float(student.ppf((1 + level) / 2, degrees)),
        patients=(estimates.positive_patients, estimates.negative_patients),
    )
    return AucEstimate(
        resolution=resolution,
        auc=auc,
        auc_low=low,
        auc_high=high,
        se=se,
        degrees_of_freedom=degrees,
        seeds=len(aucs),
        seed_sd=float(np.std(aucs, ddof=1)),
    )


def estimate_difference(
    estimates: ResolutionEstimates, resolution: int, *, reference: int, level: float = 0.95
) -> Difference:
    """AUC of a resolution minus the AUC of the reference on the same test patients, with its interval."""
    pair = make_auc_pair(estimates, resolution, reference=reference)
    se, degrees = difference_standard_error(pair)
    low, high = difference_interval(pair, level=level)
    statistic, test_degrees = t_statistic(pair, value=0.0)
    return Difference(
        resolution=resolution,
        reference=reference,
        difference=pair.difference,
        difference_low=low,
        difference_high=high,
        se=se,
        degrees_of_freedom=degrees,
        p_value=float(2 * student.sf(abs(statistic), test_degrees)),
    )


def estimate_ratio(estimates: ResolutionEstimates, resolution: int, *, reference: int) -> Ratio:
    """The ratio that Sabottke & Spieler report for 64 and 320 px, with its standard deviation by the delta method.

    As in their table, the standard deviation is of the ratio of one network of each resolution, not of the ratio of the
    means. The seeds are independent.
    """
    aucs, reference_aucs = (estimates.seed_aucs[estimates.position(each)] for each in (resolution, reference))
    ratio = estimates.auc(resolution) / estimates.auc(reference)
    relative_sd = math.hypot(
        np.std(aucs, ddof=1) / np.mean(aucs), np.std(reference_aucs, ddof=1) / np.mean(reference_aucs)
    )
    return Ratio(resolution=resolution, reference=reference, ratio=ratio, seed_sd=ratio * relative_sd)


def make_auc_pair(estimates: ResolutionEstimates, resolution: int, *, reference: int) -> AucPair:
    """The AUCs of a resolution (first) and of the reference (second), with their variances."""
    first, second = estimates.position(resolution), estimates.position(reference)
    aucs = estimates.seed_aucs[first], estimates.seed_aucs[second]
    matrix = estimates.patient_covariance
    return AucPair(
        aucs=(estimates.auc(resolution), estimates.auc(reference)),
        patient_variances=(float(matrix[first, first]), float(matrix[second, second])),
        patient_covariance=float(matrix[first, second]),
        patient_degrees=float(estimates.patient_degrees[first, second]),
        seed_variances=(_seed_variance(aucs[0]), _seed_variance(aucs[1])),
        seeds=(len(aucs[0]), len(aucs[1])),
        positive_patients=estimates.positive_patients,
        negative_patients=estimates.negative_patients,
    )


def averaging_weights(networks: Sequence[int]) -> Floats:
    """Weights [R, K] that average K networks by resolution. networks: the number of each of R resolutions, in order."""
    weights: Floats = block_diag(*(np.full(count, 1 / count) for count in networks))
    return weights


def patient_degrees(averaged: DelongComponents) -> Floats:
    """Degrees of freedom [R, R] of the patients' variances: of R AUCs on the diagonal, of their differences elsewhere.

    averaged: one row per resolution.
    """
    count = len(averaged.aucs)
    rows, columns = np.triu_indices(count, 1)
    differences = np.eye(count)[rows] - np.eye(count)[columns]
    degrees = np.diag(degrees_of_freedom(averaged))
    degrees[rows, columns] = degrees[columns, rows] = degrees_of_freedom(combine(averaged, differences))
    return degrees


def _seed_variance(aucs: tuple[float, ...]) -> float:
    return float(np.var(aucs, ddof=1)) / len(aucs)
