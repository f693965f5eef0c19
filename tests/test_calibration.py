"""Probabilities and operating points of a confirmed network."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_curve

from objectives.calibration import brier_score, reliability_bins
from objectives.errors import InputError
from objectives.operating_point import sensitivity, sensitivity_at_specificity, threshold_at_specificity


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    """1,000 images whose probabilities are true."""
    generator = np.random.default_rng(0)
    probabilities = generator.beta(1, 4, 1000)
    return (generator.random(1000) < probabilities).astype(int), probabilities


def test_brier_score_and_bins_are_scikit_learns(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = predictions
    assert brier_score(targets, probabilities) == pytest.approx(brier_score_loss(targets, probabilities))
    bins = reliability_bins(targets, probabilities, bins=8)
    observed, predicted = calibration_curve(targets, probabilities, n_bins=8, strategy="quantile")
    assert [each.observed for each in bins] == pytest.approx(observed)
    assert [each.predicted for each in bins] == pytest.approx(predicted)
    assert [each.images for each in bins] == [125] * 8


def test_equal_probabilities_share_a_bin() -> None:
    (only,) = reliability_bins([1, 0, 0, 0], [0.25] * 4)
    assert (only.predicted, only.observed, only.images) == (0.25, 0.25, 4)


@pytest.mark.parametrize("levels", [None, 12])
def test_sensitivity_is_the_roc_curves_at_that_specificity(
    predictions: tuple[np.ndarray, np.ndarray], levels: int | None
) -> None:
    targets, scores = predictions
    scores = np.round(scores * levels) if levels else scores
    false_alarms, hits, _ = roc_curve(targets, scores, drop_intermediate=False)
    expected = hits[false_alarms <= 0.1].max()
    assert sensitivity_at_specificity(targets, scores) == pytest.approx(expected)


def test_threshold_of_the_validation_patients_serves_others(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    targets, scores = predictions
    threshold = threshold_at_specificity(targets[:500], scores[:500])
    assert np.mean(scores[:500][targets[:500] == 0] < threshold) == pytest.approx(0.9, abs=0.01)
    assert sensitivity(targets[500:], scores[500:], threshold=threshold) == pytest.approx(
        np.mean(scores[500:][targets[500:] == 1] >= threshold)
    )


def test_a_specificity_needs_images_without_the_finding() -> None:
    with pytest.raises(InputError, match="0 images without the finding"):
        threshold_at_specificity([1, 1], [0.2, 0.3])
    with pytest.raises(InputError, match="0 images with the finding"):
        sensitivity([0, 0], [0.2, 0.3], threshold=0.1)
