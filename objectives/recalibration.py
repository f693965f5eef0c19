"""From a network's scores to probabilities that can be read as such: Platt's two numbers."""

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
        """Calibrated probability of each score; their order, hence every AUC, stays for a positive slope."""
        probabilities: NDArray[np.float64] = expit(self.slope * _logits(scores) + self.intercept)
        return probabilities


def fit_recalibration(targets: ArrayLike, scores: ArrayLike) -> Recalibration:
    """Logistic regression of the finding on the score's logit.

    Targets are drawn in from 0 and 1 as Platt does (Advances in Large Margin Classifiers 1999, 61-74), so that scores
    that separate the two kinds entirely still give finite numbers.
    """
    labels, logits = np.asarray(targets, dtype=np.float64), _logits(scores)
    positives = labels.sum()
    negatives = len(labels) - positives
    aims = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        line = parameters[0] * logits + parameters[1]
        error = expit(line) - aims
        return float(np.mean(np.logaddexp(0, line) - aims * line)), np.array([np.mean(error * logits), np.mean(error)])

    found = minimize(loss, x0=np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Recalibration(slope=float(found[0]), intercept=float(found[1]))


def _logits(scores: ArrayLike) -> NDArray[np.float64]:
    values: NDArray[np.float64] = logit(np.clip(np.asarray(scores, dtype=np.float64), _EDGE, 1 - _EDGE))
    return values
