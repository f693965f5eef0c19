"""AUCs of several networks on the same patients, and their covariance over draws of patients (clustered DeLong).

Patients are the independent units: the images of one patient share anatomy and often disease, so the images of each
patient are summed before anything is squared.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from acuity.objectives.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Components:
    """AUCs of K networks, and the contribution of each of P patients to their variance.

    above, below: float64 [K, P], the deviation of a patient's DeLong components from the AUC, summed over its images
    with the finding (above) or without (below) and divided by the number of all such images.
    """

    aucs: Floats
    above: Floats
    below: Floats
    positive_patients: int
    """Patients with at least one image with the finding; the same patient may also have images without."""
    negative_patients: int


def auc_components(targets: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> Components:
    """Exact AUCs and per-patient DeLong components of K networks that scored the same images.

    targets: [N] of 1 and 0. scores: [K, N], higher = more likely, ties count half. patients: [N], any
    identifiers. InputError with fewer than 2 patients with the finding or without.

    Components: DeLong et al., Biometrics 1988;44:837-845; by midranks in O(N log N): Sun & Xu, IEEE Signal Process
    Lett 2014;21:1389-1393; summed by patient: Obuchowski, Biometrics 1997;53:567-578.
    """
    labels, values = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    clusters, codes = np.unique(np.asarray(patients), return_inverse=True)
    assert values.ndim == 2, "scores are [networks, images]"
    assert labels.shape == codes.shape == values.shape[1:], "one target and one patient an image"
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
    above = (ranks[:, positive] - rankdata(values[:, positive], axis=1)) / negatives
    below = 1 - (ranks[:, ~positive] - rankdata(values[:, ~positive], axis=1)) / positives
    aucs: Floats = above.mean(axis=1)
    return Components(
        aucs=aucs,
        above=_sum_by_patient(above - aucs[:, None], codes[positive], patients=clusters.size) / positives,
        below=_sum_by_patient(below - aucs[:, None], codes[~positive], patients=clusters.size) / negatives,
        positive_patients=positive_patients,
        negative_patients=negative_patients,
    )


def combine(components: Components, weights: ArrayLike) -> Components:
    """Components of weighted sums of the networks' AUCs: weights [G, K], for instance 1/S for each of S seeds."""
    matrix = np.asarray(weights, dtype=np.float64)
    return Components(
        aucs=matrix @ components.aucs,
        above=matrix @ components.above,
        below=matrix @ components.below,
        positive_patients=components.positive_patients,
        negative_patients=components.negative_patients,
    )


def covariance(components: Components) -> Floats:
    """Covariance [K, K] of the AUCs over draws of test patients, the networks as they are.

    Obuchowski, Biometrics 1997;53:567-578; with one image a patient it is DeLong's own. Never indefinite: the factor
    of the mixed term is the smallest of the three.
    """
    above, below = components.above, components.below
    patients = above.shape[1]
    mixed = above @ below.T
    total: Floats = (
        _unbias(components.positive_patients) * (above @ above.T)
        + _unbias(components.negative_patients) * (below @ below.T)
        + _unbias(patients) * (mixed + mixed.T)
    )
    return total


def auc_standard_error(targets: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> float:
    """Standard error of one network's AUC over draws of test patients, of which one may have several images.

    All three are [N]. InputError with fewer than 2 patients with the finding or without.
    """
    variance = float(covariance(auc_components(targets, np.asarray(scores)[None], patients))[0, 0])
    return math.sqrt(max(variance, 0.0))  # rounding can take it just below 0


def degrees_of_freedom(components: Components) -> Floats:
    """Degrees of freedom of each variance [K] in `covariance`: 2 V^2 / var(V), from the patients' contributions to V.

    Satterthwaite, Biometrics Bulletin 1946;2:110-114. At a high AUC a few patients contribute most of the variance. The
    number of patients less 1 would then be too large: with 34 positive patients and an AUC of .98 the interval covers
    93 %.
    """
    squares = (components.above + components.below) ** 2
    total, patients = squares.sum(axis=1), squares.shape[1]
    uncertainty = (squares**2).sum(axis=1) - total**2 / patients
    most = min(components.positive_patients, components.negative_patients) - 1.0
    degrees = np.full(total.shape, most)
    np.divide(2 * total**2, uncertainty, out=degrees, where=uncertainty > 0)
    return np.minimum(degrees, most)


def _unbias(count: int) -> float:
    return count / (count - 1)


def _sum_by_patient(values: Floats, codes: NDArray[np.intp], *, patients: int) -> Floats:
    return np.stack([np.bincount(codes, weights=row, minlength=patients) for row in values])
