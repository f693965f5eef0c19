"""How well scores tell images with a finding from those without: AUC with its error by patient, accuracy, precision.

Throughout, targets hold 1 (finding) or 0 (none); scores are any real numbers in the same order, higher = more likely.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from objectives.errors import InputError

Floats = NDArray[np.float64]


def auc(targets: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: how often an image with the finding scores above one without, a tie counting half.

    Exact, by midranks (Mann-Whitney), in float64.
    """
    positive, values = _check(targets, scores)
    positives, negatives = _counts(positive)
    rank_sum = float(_midranks(values)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def auc_standard_error(targets: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> float:
    """Standard error of the AUC when one patient may have several images, which are then no independent witnesses.

    DeLong's structural components summed by patient (Obuchowski, Biometrics 1997;53:567-578), the components from
    midranks in O(n log n) (Sun & Xu, IEEE Signal Process Lett 2014;21:1389-1393). With one image a patient it is
    DeLong's own. Needs two patients with the finding and two without.
    """
    positive, values = _check(targets, scores)
    clusters = np.unique(np.asarray(patients), return_inverse=True)[1]
    assert clusters.shape == positive.shape
    positives, negatives = _counts(positive)
    above, below = _structural_components(positive, values)
    area = above.mean()

    patient_count = int(clusters.max()) + 1
    with_finding, without = np.unique(clusters[positive]).size, np.unique(clusters[~positive]).size
    if min(with_finding, without) < 2:
        raise InputError(
            f"{with_finding} patients with the finding and {without} without, need at least 2 of each for the AUC's "
            "standard error: use more patients"
        )
    # Each patient's deviation from its share of the area, over its images with the finding and over those without.
    over_positives = np.bincount(clusters[positive], weights=above - area, minlength=patient_count)
    over_negatives = np.bincount(clusters[~positive], weights=below - area, minlength=patient_count)
    variance = (
        with_finding / (with_finding - 1) * (over_positives @ over_positives) / positives**2
        + without / (without - 1) * (over_negatives @ over_negatives) / negatives**2
        + 2 * patient_count / (patient_count - 1) * (over_positives @ over_negatives) / (positives * negatives)
    )
    return math.sqrt(max(float(variance), 0.0))  # the covariance's own factor can carry it just below zero


def auc_interval(area: float, standard_error: float, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an AUC, symmetric on the logit scale so that it stays within [0, 1].

    Without a spread to go by (standard error 0, as for an AUC of exactly 0 or 1) both ends are the AUC.
    """
    if standard_error == 0 or area <= 0 or area >= 1:
        return area, area
    centre = math.log(area / (1 - area))
    half_width = NormalDist().inv_cdf((1 + level) / 2) * standard_error / (area * (1 - area))
    return _expit(centre - half_width), _expit(centre + half_width)


def average_precision(targets: ArrayLike, scores: ArrayLike) -> float:
    """Precision averaged over the positives, each at the threshold that just admits it (no interpolation)."""
    hits, false_alarms, _ = _cumulative(targets, scores)
    precision = hits / (hits + false_alarms)
    return float(np.diff(hits, prepend=0.0) @ precision / hits[-1])


def accuracy(targets: ArrayLike, scores: ArrayLike, *, threshold: float) -> float:
    """Share of images on their own side of the threshold; a score equal to it counts as a finding."""
    positive, values = _check(targets, scores)
    return float(np.mean((values >= threshold) == positive))


def youden_threshold(targets: ArrayLike, scores: ArrayLike) -> float:
    """The score from which on calling a finding gains most: sensitivity + specificity at its largest (Youden's J).

    Of equally good thresholds the highest, which raises the fewest false alarms.
    """
    hits, false_alarms, thresholds = _cumulative(targets, scores)
    return float(thresholds[np.argmax(hits / hits[-1] - false_alarms / false_alarms[-1])])


def _check(targets: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    labels, values = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    assert labels.ndim == 1
    assert labels.shape == values.shape
    assert np.isin(labels, (0, 1)).all(), "targets must be 0 or 1"
    assert not np.isnan(values).any(), "a score is not a number"
    return labels == 1, values


def _counts(positive: NDArray[np.bool_]) -> tuple[int, int]:
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        raise InputError(
            f"{positives} images with the finding and {negatives} without, an AUC needs both: "
            "choose another label or more patients"
        )
    return positives, negatives


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle: Floats = np.cumsum(counts) - (counts - 1) / 2
    return middle[inverse]


def _structural_components(positive: NDArray[np.bool_], values: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative the share of positives above it."""
    positives, negatives = _counts(positive)
    ranks = _midranks(values)
    above: Floats = (ranks[positive] - _midranks(values[positive])) / negatives
    below: Floats = 1 - (ranks[~positive] - _midranks(values[~positive])) / positives
    return above, below


def _cumulative(targets: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """True and false positives at each distinct threshold, from the highest down."""
    positive, values = _check(targets, scores)
    _counts(positive)
    thresholds, inverse, counts = np.unique(-values, return_inverse=True, return_counts=True)
    hits: Floats = np.cumsum(np.bincount(inverse, weights=positive, minlength=thresholds.size))
    false_alarms: Floats = np.cumsum(counts) - hits
    return hits, false_alarms, -thresholds


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
