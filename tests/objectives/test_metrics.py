"""The metrics against formulas that compare all pairs of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.metrics import (
    accuracy,
    auc,
    average_precision,
    sensitivity_at_specificity,
    youden_threshold,
)


@st.composite
def labelled_scores(draw):
    """Targets of both classes, and scores from four values (many ties) or from all of float32."""
    score = draw(st.sampled_from([st.sampled_from([-1.0, 0.0, 0.25, 3.0]), st.floats(-1e6, 1e6, width=32)]))
    targets = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=60))]
    scores = draw(st.lists(score, min_size=len(targets), max_size=len(targets)))
    return np.array(targets, dtype=np.float32), np.array(scores)


@given(labelled_scores())
def test_auc_is_the_share_of_pairs_in_the_right_order(drawn):
    targets, scores = drawn
    positives, negatives = scores[targets == 1], scores[targets == 0]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    assert auc(targets, scores) == pytest.approx(wins.mean(), abs=1e-12)


@given(labelled_scores())
def test_average_precision_is_the_mean_precision_at_the_positives(drawn):
    targets, scores = drawn
    precisions = [np.mean(targets[scores >= score], dtype=np.float64) for score in scores[targets == 1]]
    assert average_precision(targets, scores) == pytest.approx(np.mean(precisions), abs=1e-12)


@given(labelled_scores())
def test_youden_threshold_has_the_largest_sum_of_sensitivity_and_specificity(drawn):
    targets, scores = drawn
    best = max(gain(targets, scores, threshold) for threshold in scores)
    found = youden_threshold(targets, scores)
    assert found in scores
    assert gain(targets, scores, found) == pytest.approx(best, abs=1e-12)


def test_youden_threshold_is_the_highest_of_equals():
    assert youden_threshold([0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0]) == 4.0


def gain(targets, scores, threshold):
    called = scores >= threshold
    return called[targets == 1].mean() - called[targets == 0].mean()


@given(labelled_scores(), st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]))
def test_sensitivity_is_the_highest_of_the_thresholds_with_that_specificity(drawn, specificity):
    targets, scores = drawn
    sensitivities = [
        (scores[targets == 1] >= threshold).mean()
        for threshold in [*scores, np.inf]
        if (scores[targets == 0] < threshold).mean() >= specificity
    ]
    found = sensitivity_at_specificity(targets, scores, specificity=specificity)
    assert found == pytest.approx(max(sensitivities), abs=1e-12)


def test_specificity_of_90_percent_allows_one_false_positive_in_ten():
    targets, scores = np.repeat([0, 1], 10), np.concatenate([np.arange(10), np.arange(10) - 0.5])
    assert sensitivity_at_specificity(targets, scores) == 0.1


@given(labelled_scores(), st.floats(-10, 10))
def test_accuracy_is_the_share_of_correctly_classified_images(drawn, threshold):
    targets, scores = drawn
    right = sum((score >= threshold) == bool(target) for target, score in zip(targets, scores, strict=True))
    assert accuracy(targets, scores, threshold=threshold) == pytest.approx(right / len(targets))


@pytest.mark.parametrize("metric", [auc, average_precision, youden_threshold, sensitivity_at_specificity])
def test_one_class_is_rejected_with_the_counts(metric):
    with pytest.raises(InputError, match=r"0 images with the finding and 3 without, an AUC needs both"):
        metric(np.zeros(3), np.arange(3.0))
