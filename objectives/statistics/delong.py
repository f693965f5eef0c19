"""Clustered DeLong: AUCs of several networks on the same patients, and their covariance over samples of patients.

Patients are the independent units. Images of one patient share anatomy and often disease, so the DeLong components of
each patient are summed before they are squared.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from acuity.objectives.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DelongComponents:
    """AUCs of K networks, and each of P patients' contribution to their covariance."""

    aucs: Floats
    """float64 [K]."""
    positive: Floats
    """float64 [K, P]: the deviations of the components from the AUC, summed over the patient's images with the finding
    and divided by the number of all images with the finding."""
    negative: Floats
    """float64 [K, P]: the same for the images without the finding."""
    positive_patients: int
    """Patients with at least one image with the finding. A patient may be both positive and negative."""
    negative_patients: int
    """Patients with at least one image without the finding."""


def delong_components(targets: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> DelongComponents:
    """Exact AUCs of K networks that scored the same images, and their DeLong components by patient.

    targets: [N] of 1 and 0. scores: [K, N]; ties count half. patients: [N], any identifiers. InputError with fewer than
    2 positive or 2 negative patients.

    Components: DeLong et al., Biometrics 1988;44:837-845. Midranks in O(N log N): Sun & Xu, IEEE Signal Process Lett
    2014;21:1389-1393. Sums by patient: Obuchowski, Biometrics 1997;53:567-578.
    """
    labels, values = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    clusters, codes = np.unique(np.asarray(patients), return_inverse=True)
    assert values.ndim == 2, "scores are [networks, images]"
    assert labels.shape == codes.shape == values.shape[1:], "one target and one patient per image"
    assert np.isin(labels, (0, 1)).all(), "targets must be 0 or 1: leave out images whose label is not known"
    assert not np.isnan(values).any(), "a score is not a number"
    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    positive_patients, negative_patients = np.unique(codes[positive]).size, np.unique(codes[~positive]).size
    if min(positive_patients, negative_patients) < 2:
        raise InputError(
            f"{positive_patients} patients with the finding and {negative_patients} without, need at least 2 of each "
            "for the AUC's standard error: choose another label or more patients"
        )
    ranks = rankdata(values, axis=1)
    negatives_below = (ranks[:, positive] - rankdata(values[:, positive], axis=1)) / negatives
    positives_above = 1 - (ranks[:, ~positive] - rankdata(values[:, ~positive], axis=1)) / positives
    aucs: Floats = negatives_below.mean(axis=1)
    return DelongComponents(
        aucs=aucs,
        positive=_sum_by_patient(negatives_below - aucs[:, None], codes[positive], patients=clusters.size) / positives,
        negative=_sum_by_patient(positives_above - aucs[:, None], codes[~positive], patients=clusters.size) / negatives,
        positive_patients=positive_patients,
        negative_patients=negative_patients,
    )


def combine(components: DelongComponents, weights: ArrayLike) -> DelongComponents:
    """Components of G weighted sums of the AUCs. weights: [G, K], for instance 1/S for each of S seeds."""
    matrix = np.asarray(weights, dtype=np.float64)
    return DelongComponents(
        aucs=matrix @ components.aucs,
        positive=matrix @ components.positive,
        negative=matrix @ components.negative,
        positive_patients=components.positive_patients,
        negative_patients=components.negative_patients,
    )


def covariance(components: DelongComponents) -> Floats:
    """Covariance [K, K] of the AUCs over samples of test patients, for fixed networks.

    Obuchowski, Biometrics 1997;53:567-578. With one image per patient it equals DeLong's covariance. The matrix is
    positive semidefinite, because the factor of the mixed term is the smallest of the three.
    """
    positive, negative = components.positive, components.negative
    patients = positive.shape[1]
    mixed = positive @ negative.T
    total: Floats = (
        _bessel_factor(components.positive_patients) * (positive @ positive.T)
        + _bessel_factor(components.negative_patients) * (negative @ negative.T)
        + _bessel_factor(patients) * (mixed + mixed.T)
    )
    return total


def auc_standard_error(targets: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> float:
    """Standard error of one network's AUC over samples of test patients with one or more images each.

    targets, scores and patients: [N]. InputError with fewer than 2 positive or 2 negative patients.
    """
    variance = float(covariance(delong_components(targets, np.asarray(scores)[None], patients))[0, 0])
    return math.sqrt(max(variance, 0.0))  # rounding can give a variance just below 0


def degrees_of_freedom(components: DelongComponents) -> Floats:
    """Degrees of freedom [K] of the variances V in `covariance`: 2 V^2 / var(V), from the patients' contributions to V.

    Satterthwaite, Biometrics Bulletin 1946;2:110-114. At a high AUC a few patients contribute most of the variance. The
    number of patients less 1 would then be too large: with 34 positive patients and an AUC of .98 the interval covers
    93 %.
    """
    squares = (components.positive + components.negative) ** 2
    variance, patients = squares.sum(axis=1), squares.shape[1]
    variance_of_variance = (squares**2).sum(axis=1) - variance**2 / patients
    largest = min(components.positive_patients, components.negative_patients) - 1.0
    degrees = np.full(variance.shape, largest)
    np.divide(2 * variance**2, variance_of_variance, out=degrees, where=variance_of_variance > 0)
    return np.minimum(degrees, largest)


def _bessel_factor(count: int) -> float:
    return count / (count - 1)


def _sum_by_patient(values: Floats, codes: NDArray[np.intp], *, patients: int) -> Floats:
    return np.stack([np.bincount(codes, weights=row, minlength=patients) for row in values])
