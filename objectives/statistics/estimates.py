"""AUC of each resolution and differences between two, with intervals over other test patients and other seeds.

An AUC is a mean over seeds. It varies with the test patients and with the seeds, so its variance has two parts:
patient-clustered DeLong on the components averaged over seeds, and s^2 / S, where s is the standard deviation over the
S seeds. All resolutions share the test patients, which makes differences more precise; seeds are not paired.

s^2 is estimated on finite test patients, so it includes the interaction of seed and patients, of which the first part
already has 1/S. We keep that excess. Without it (Obuchowski & Rockette, Commun Stat Simul Comput 1995;24:285-308) a
one-sided 5 % test was wrong in 6 to 7 % of cases with 34 positive patients, with it in 4 to 5 %
(benchmarks/validity/coverage.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.delong import Components, auc_components, combine, covariance, degrees_of_freedom
from acuity.objectives.statistics.difference import Contrast, difference_limits, difference_spread, t_statistic
from acuity.objectives.statistics.intervals import auc_interval, satterthwaite

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """AUCs and their covariance for several resolutions scored on the same test patients."""

    resolutions: tuple[int, ...]
    """Ascending."""
    seed_aucs: tuple[tuple[float, ...], ...]
    """For each resolution the AUC of each seed."""
    patient_covariance: Floats
    """[R, R], of the AUCs averaged over seeds, over draws of test patients."""
    patient_degrees: Floats
    """[R, R], degrees of freedom of variances over draws of test patients: of the AUCs (diagonal) and differences."""
    positive_patients: int
    negative_patients: int

    def auc(self, resolution: int) -> float:
        """The AUC averaged over seeds."""
        return float(np.mean(self.seed_aucs[self.position(resolution)]))

    def position(self, resolution: int) -> int:
        """Index of the resolution; InputError if it was not measured."""
        if resolution not in self.resolutions:
            known = ", ".join(map(str, self.resolutions))
            raise InputError(f"{resolution} px was not confirmed. There are: {known}")
        return self.resolutions.index(resolution)


@dataclass(frozen=True)
class AucEstimate:
    """The AUC of a resolution, averaged over seeds."""

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
    """AUC of a resolution less the AUC of a reference."""

    resolution: int
    reference: int
    difference: float
    difference_low: float
    difference_high: float
    se: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided, of no difference; not corrected for multiple comparisons."""


@dataclass(frozen=True)
class Ratio:
    """AUC of a resolution divided by that of a reference, with its standard deviation over seeds."""

    resolution: int
    reference: int
    ratio: float
    seed_sd: float


def measure_resolutions(targets: ArrayLike, scores: Mapping[int, ArrayLike], patients: ArrayLike) -> Measured:
    """Score resolutions on the same test images.

    scores: for each resolution [S, N], one row a seed, at least 2 seeds, not necessarily as many for each resolution.
    targets [N] of 1 and 0, patients [N]. InputError with one seed or fewer than 2 patients of a kind.
    """
    resolutions = tuple(sorted(scores))
    networks = [np.asarray(scores[resolution], dtype=np.float64) for resolution in resolutions]
    for resolution, rows in zip(resolutions, networks, strict=True):
        if len(rows) < 2:
            raise InputError(
                f"{resolution} px has {len(rows)} seed, need at least 2 for the variance over seeds: raise --seeds"
            )
    owner = np.repeat(np.arange(len(networks)), [len(rows) for rows in networks])
    each = auc_components(targets, np.concatenate(networks), patients)
    averaging = (owner == np.arange(len(networks))[:, None]).astype(np.float64)
    averaging /= averaging.sum(axis=1, keepdims=True)
    averaged = combine(each, averaging)
    return Measured(
        resolutions=resolutions,
        seed_aucs=tuple(tuple(map(float, each.aucs[owner == position])) for position in range(len(networks))),
        patient_covariance=covariance(averaged),
        patient_degrees=_patient_degrees(averaged),
        positive_patients=each.positive_patients,
        negative_patients=each.negative_patients,
    )


def estimate_auc(measured: Measured, resolution: int, *, level: float = 0.95) -> AucEstimate:
    """The AUC of a resolution with its interval over other test patients and other seeds.

    The degrees of freedom are Satterthwaite's, with S - 1 for the seeds. The interval is symmetric on the logit scale.
    """
    position = measured.position(resolution)
    aucs = measured.seed_aucs[position]
    auc = measured.auc(resolution)
    patient_variance, seed_variance = float(measured.patient_covariance[position, position]), _seed_variance(aucs)
    degrees = satterthwaite(
        (patient_variance, float(measured.patient_degrees[position, position])),
        (seed_variance, len(aucs) - 1),
    )
    se = math.sqrt(patient_variance + seed_variance)
    low, high = auc_interval(
        auc,
        se,
        quantile=float(student.ppf((1 + level) / 2, degrees)),
        patients=(measured.positive_patients, measured.negative_patients),
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


def estimate_difference(measured: Measured, resolution: int, *, reference: int, level: float = 0.95) -> Difference:
    """AUC of a resolution less the AUC of the reference on the same test patients, with its interval."""
    contrast = contrast_of(measured, resolution, reference=reference)
    se, degrees = difference_spread(contrast)
    low, high = difference_limits(contrast, level=level)
    statistic, logit_degrees = t_statistic(contrast, value=0.0)
    return Difference(
        resolution=resolution,
        reference=reference,
        difference=contrast.difference,
        difference_low=low,
        difference_high=high,
        se=se,
        degrees_of_freedom=degrees,
        p_value=float(2 * student.sf(abs(statistic), logit_degrees)),
    )


def auc_ratio(measured: Measured, resolution: int, *, reference: int) -> Ratio:
    """The ratio that Sabottke & Spieler report (64 to 320 px), with its standard deviation by the delta method.

    The standard deviation is that of one network of each resolution, as in their table, not of the mean. Seeds are
    independent.
    """
    ours, theirs = (measured.seed_aucs[measured.position(each)] for each in (resolution, reference))
    ratio = float(np.mean(ours) / np.mean(theirs))
    relative = math.hypot(np.std(ours, ddof=1) / np.mean(ours), np.std(theirs, ddof=1) / np.mean(theirs))
    return Ratio(resolution=resolution, reference=reference, ratio=ratio, seed_sd=ratio * relative)


def contrast_of(measured: Measured, resolution: int, *, reference: int) -> Contrast:
    """The contrast of a resolution (first) and the reference (second)."""
    ours, theirs = measured.position(resolution), measured.position(reference)
    aucs = measured.seed_aucs[ours], measured.seed_aucs[theirs]
    matrix = measured.patient_covariance
    return Contrast(
        aucs=(measured.auc(resolution), measured.auc(reference)),
        patient_variances=(float(matrix[ours, ours]), float(matrix[theirs, theirs])),
        patient_covariance=float(matrix[ours, theirs]),
        patient_degrees=float(measured.patient_degrees[ours, theirs]),
        seed_variances=(_seed_variance(aucs[0]), _seed_variance(aucs[1])),
        seeds=(len(aucs[0]), len(aucs[1])),
        positive_patients=measured.positive_patients,
        negative_patients=measured.negative_patients,
    )


def _patient_degrees(averaged: Components) -> Floats:
    count = len(averaged.aucs)
    rows, columns = np.triu_indices(count, 1)
    differences = np.eye(count)[rows] - np.eye(count)[columns]
    table = np.diag(degrees_of_freedom(averaged))
    table[rows, columns] = table[columns, rows] = degrees_of_freedom(combine(averaged, differences))
    return table


def _seed_variance(aucs: tuple[float, ...]) -> float:
    return float(np.var(aucs, ddof=1)) / len(aucs)
