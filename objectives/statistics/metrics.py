"""Metrics of one network's scores for one finding, computed by scikit-learn.

In every function targets are [N] of 1 (finding) or 0 (no finding), and scores are [N] in the same order. A higher score
means that the finding is more likely.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, average_precision_score, roc_curve
from sklearn.metrics import auc as area_under

from acuity.objectives.errors import InputError

Floats = NDArray[np.float64]


def auc(targets: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the share of pairs in which the image with the finding scores higher. Ties count half.

    InputError where all targets are equal.
    """
    false_positive_rates, sensitivities, _ = _roc_curve(targets, scores)
    return float(area_under(false_positive_rates, sensitivities))  # half the time of roc_auc_score


def average_precision(targets: ArrayLike, scores: ArrayLike) -> float:
    """Precision averaged over the positives, each at the highest threshold that includes it, without interpolation.

    InputError where all targets are equal.
    """
    return float(average_precision_score(*_check_both_classes(targets, scores)))


def accuracy(targets: ArrayLike, scores: ArrayLike, *, threshold: float) -> float:
    """Share of images that the threshold classifies correctly. A score equal to the threshold counts as a finding."""
    positive, values = _check_inputs(targets, scores)
    return float(accuracy_score(positive, values >= threshold))


def youden_threshold(targets: ArrayLike, scores: ArrayLike) -> float:
    """The threshold with the largest sum of sensitivity and specificity (Youden's J).

    The highest of equally good thresholds is returned: it gives the fewest false positives. InputError where all
    targets are equal.
    """
    false_positive_rates, sensitivities, thresholds = _roc_curve(targets, scores)
    # The first threshold is infinite: it classifies no image as a finding.
    return float(thresholds[1:][np.argmax((sensitivities - false_positive_rates)[1:])])


def sensitivity_at_specificity(targets: ArrayLike, scores: ArrayLike, *, specificity: float = 0.9) -> float:
    """The highest sensitivity among the thresholds with at least this specificity on the same images.

    InputError where all targets are equal.
    """
    false_positive_rates, sensitivities, _ = _roc_curve(targets, scores)
    # 1 - 0.9 is a little below 0.1 in floating point.
    return float(sensitivities[false_positive_rates <= 1 - specificity + 1e-12].max())


def _roc_curve(targets: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """False positive rate and sensitivity at each distinct threshold, in descending order of the threshold."""
    positive, values = _check_both_classes(targets, scores)
    false_positive_rates, sensitivities, thresholds = roc_curve(positive, values, drop_intermediate=False)
    return false_positive_rates, sensitivities, thresholds


def _check_inputs(targets: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    labels, values = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    assert labels.ndim == 1
    assert labels.shape == values.shape
    assert np.isin(labels, (0, 1)).all(), "targets must be 0 or 1"
    assert not np.isnan(values).any(), "a score is not a number"
    return labels == 1, values


def _check_both_classes(targets: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    positive, values = _check_inputs(targets, scores)
    positives = int(positive.sum())
    if not 0 < positives < positive.size:
        raise InputError(
            f"{positives} images with the finding and {positive.size - positives} without, an AUC needs both: "
            "choose another label or more patients"
        )
    return positive, values
