"""How many findings are caught when false alarms are held to a tenth: what an AUC means at the reading desk."""

import numpy as np
from numpy.typing import ArrayLike

from objectives.errors import InputError


def threshold_at_specificity(targets: ArrayLike, scores: ArrayLike, *, specificity: float = 0.9) -> float:
    """The lowest score from which on calling a finding spares at least this share of the images without it.

    As in metrics.accuracy, a score equal to the threshold counts as a finding.
    """
    without = np.sort(np.asarray(scores, dtype=np.float64)[np.asarray(targets) == 0])
    if without.size == 0:
        raise InputError("0 images without the finding, a specificity needs some: choose another label")
    # Whatever is at or below the last image to be spared must stay below the threshold, its equals included.
    spared = int(np.ceil(specificity * without.size - 1e-9))
    return float(np.nextafter(without[spared - 1], np.inf)) if spared else float("-inf")


def sensitivity(targets: ArrayLike, scores: ArrayLike, *, threshold: float) -> float:
    """Share of the images with the finding that score at least the threshold."""
    found = np.asarray(scores, dtype=np.float64)[np.asarray(targets) == 1]
    if found.size == 0:
        raise InputError("0 images with the finding, a sensitivity needs some: choose another label")
    return float(np.mean(found >= threshold))


def sensitivity_at_specificity(targets: ArrayLike, scores: ArrayLike, *, specificity: float = 0.9) -> float:
    """Sensitivity at a specificity, both of the same images."""
    return sensitivity(targets, scores, threshold=threshold_at_specificity(targets, scores, specificity=specificity))
