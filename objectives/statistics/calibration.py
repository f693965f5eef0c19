"""Platt scaling of scores to calibrated probabilities, and reliability bins of probabilities."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

_EPSILON = 1e-12


@dataclass(frozen=True)
class PlattScaling:
    """probability = 1 / (1 + exp(-(slope * logit(score) + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probability of each score. A positive slope keeps the order of the scores, and so the AUC."""
        probabilities: NDArray[np.float64] = expit(self.slope * _logits(scores) + self.intercept)
        return probabilities


def fit_platt_scaling(targets: ArrayLike, scores: ArrayLike) -> PlattScaling:
    """Fit a logistic regression of the finding on the score's logit.

    targets: [N] of 1 and 0; scores: [N] in [0, 1]. The regression uses Platt's smoothed targets, a little above 0 and a
    little below 1 (Advances in Large Margin Classifiers 1999, 61-74). They keep the parameters finite where the scores
    separate the classes completely.
    """
    labels, logits = np.asarray(targets, dtype=np.float64), _logits(scores)
    positives = labels.sum()
    negatives = len(labels) - positives
    smoothed = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        calibrated_logits = parameters[0] * logits + parameters[1]
        error = expit(calibrated_logits) - smoothed
        gradient = np.array([np.mean(error * logits), np.mean(error)])
        return float(np.mean(np.logaddexp(0, calibrated_logits) - smoothed * calibrated_logits)), gradient

    slope, intercept = minimize(loss, x0=np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return PlattScaling(slope=float(slope), intercept=float(intercept))


@dataclass(frozen=True)
class ReliabilityBin:
    """Images with similar probabilities."""

    predicted: float
    """Mean probability."""
    observed: float
    """Share of images with the finding."""
    images: int


def reliability_bins(targets: ArrayLike, probabilities: ArrayLike, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Predicted and observed shares of the finding in bins of about equally many images, in ascending order.

    targets: [N] of 1 and 0; probabilities: [N]. Equal probabilities share a bin, so fewer than `bins` bins may be
    returned. scikit-learn's calibration_curve does not count the images of a bin, and it puts a probability equal to an
    edge into the lower bin; here it is in the upper bin.
    """
    labels, values = np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    bin_of_image = np.searchsorted(edges, values, side="right")
    return tuple(
        ReliabilityBin(
            predicted=float(values[bin_of_image == number].mean()),
            observed=float(labels[bin_of_image == number].mean()),
            images=int((bin_of_image == number).sum()),
        )
        for number in np.unique(bin_of_image)
    )


def _logits(scores: ArrayLike) -> NDArray[np.float64]:
    values: NDArray[np.float64] = logit(np.clip(np.asarray(scores, dtype=np.float64), _EPSILON, 1 - _EPSILON))
    return values
