"""Platt scaling and reliability bins."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from acuity.objectives.statistics.calibration import fit_platt_scaling, reliability_bins


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    """Targets of 1,000 images, drawn with the returned probabilities."""
    generator = np.random.default_rng(0)
    probabilities = generator.beta(1, 4, 1000)
    return (generator.random(1000) < probabilities).astype(int), probabilities


def test_bins_equal_those_of_scikit_learn(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = predictions
    bins = reliability_bins(targets, probabilities, bins=8)
    observed, predicted = calibration_curve(targets, probabilities, n_bins=8, strategy="quantile")
    assert [each.observed for each in bins] == pytest.approx(observed)
    assert [each.predicted for each in bins] == pytest.approx(predicted)
    assert [each.images for each in bins] == [125] * 8


def test_equal_probabilities_share_a_bin() -> None:
    (only,) = reliability_bins([1, 0, 0, 0], [0.25] * 4)
    assert (only.predicted, only.observed, only.images) == (0.25, 0.25, 4)


def test_mean_calibrated_probability_is_the_mean_of_platts_smoothed_targets() -> None:
    targets, scores = np.array([0, 0, 0, 1, 0, 1]), np.array([0.1, 0.4, 0.2, 0.7, 0.6, 0.3])
    smoothed = np.where(targets == 1, 3 / 4, 1 / 6)
    calibrated = fit_platt_scaling(targets, scores)(scores)
    # At the optimum both gradients of the logistic regression are 0.
    assert calibrated.mean() == pytest.approx(smoothed.mean(), abs=1e-4)
    logits = np.log(scores / (1 - scores))
    assert calibrated @ logits == pytest.approx(smoothed @ logits, abs=1e-3)
