"""Whether a probability of 30 % means a finding in 30 of 100 images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class ReliabilityBin:
    """Images of similar predicted probability."""

    predicted: float
    """Mean probability."""
    observed: float
    """Share with the finding."""
    images: int


def brier_score(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared distance of probability and outcome (Brier, Mon Weather Rev 1950;78:1-3); 0 is perfect."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - np.asarray(targets, dtype=np.float64)) ** 2))


def reliability_bins(targets: ArrayLike, probabilities: ArrayLike, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Predicted and observed share in bins of about equally many images, from the lowest probability up.

    Equal probabilities share a bin, so there may be fewer bins than asked for.
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
