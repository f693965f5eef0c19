"""Platt scaling of scores to calibrated probabilities, and the reliability of probabilities.

The Brier score is scikit-learn's brier_score_loss.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

_EDGE = 1e-12


@dataclass(frozen=True)
class Recalibration:
    """probability = 1 / (1 + exp(-(slope * logit(score) + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probability of each score. A positive slope keeps their order, hence every AUC."""
        probabilities: NDArray[np.float64] = expit(self.slope * _logits(scores) + self.intercept)
        return probabilities


def fit_recalibration(targets: ArrayLike, scores: ArrayLike) -> Recalibration:
    """Logistic regression of the finding on the score's logit.

    The targets are Platt's smoothed ones (Advances in Large Margin Classifiers 1999, 61-74): a little above 0 and below
    1. The parameters then stay finite where the scores separate the two kinds of images completely.
    """
    labels, logits = np.asarray(targets, dtype=np.float64), _logits(scores)
    positives = labels.sum()
    negatives = len(labels) - positives
    smoothed = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        line = parameters[0] * logits + parameters[1]
        error = expit(line) - smoothed
        gradient = np.array([np.mean(error * logits), np.mean(error)])
        return float(np.mean(np.logaddexp(0, line) - smoothed * line)), gradient

    found = minimize(loss, x0=np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Recalibration(slope=float(found[0]), intercept=float(found[1]))


@dataclass(frozen=True)
class ReliabilityBin:
    """Images of similar predicted probability."""

    predicted: float
    """Mean probability."""
    observed: float
    """Share with the finding."""
    images: int


def reliability_bins(targets: ArrayLike, probabilities: ArrayLike, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Predicted and observed share in bins of about equally many images, in ascending order of probability.

    Equal probabilities share a bin, so there may be fewer bins than `bins`. Unlike scikit-learn's calibration_curve it
    counts the images of each bin, and a probability equal to an edge is in the upper bin.
    """
    labels, values = np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    member = np.searchsorted(edges, values, side="right")
    return tuple(
        ReliabilityBin(
            predicted=float(values[member == each].mean()),
            observed=float(labels[member == each].mean()),
            images=int((member == each).sum()),
        )
        for each in np.unique(member)
    )


def _logits(scores: ArrayLike) -> NDArray[np.float64]:
    values: NDArray[np.float64] = logit(np.clip(np.asarray(scores, dtype=np.float64), _EDGE, 1 - _EDGE))
    return values
