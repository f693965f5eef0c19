"""The metrics against scikit-learn, a plain O(n^2) DeLong and a patient bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve

from objectives.errors import InputError
from objectives.metrics import (
    accuracy,
    auc,
    auc_interval,
    auc_standard_error,
    average_precision,
    youden_threshold,
)


@st.composite
def labelled_scores(draw, least_of_each=1):
    """Both classes present; scores from few values (many ties) or from all of float32."""
    score = draw(st.sampled_from([st.sampled_from([-1.0, 0.0, 0.25, 3.0]), st.floats(-1e6, 1e6, width=32)]))
    fixed = [0, 1] * least_of_each
    targets = fixed + draw(st.lists(st.integers(0, 1), max_size=60))
    scores = draw(st.lists(score, min_size=len(targets), max_size=len(targets)))
    return np.array(targets, dtype=np.float32), np.array(scores)


@given(labelled_scores())
def test_auc_equals_scikit_learns(drawn):
    assert auc(*drawn) == pytest.approx(roc_auc_score(*drawn), abs=1e-12)


@given(labelled_scores())
def test_average_precision_equals_scikit_learns(drawn):
    assert average_precision(*drawn) == pytest.approx(average_precision_score(*drawn), abs=1e-12)


@given(labelled_scores())
def test_youden_threshold_reaches_the_largest_sum_of_sensitivity_and_specificity(drawn):
    targets, scores = drawn
    false_alarm_rate, sensitivity, _ = roc_curve(targets, scores)
    called = scores >= youden_threshold(targets, scores)
    reached = called[targets == 1].mean() - called[targets == 0].mean()
    best = (sensitivity - false_alarm_rate).max()
    lowest = (scores.min() <= scores).mean() - 1  # calling everything a finding is worth nothing either
    assert reached == pytest.approx(max(best, lowest), abs=1e-12)


@given(labelled_scores(), st.floats(-10, 10))
def test_accuracy_equals_scikit_learns(drawn, threshold):
    targets, scores = drawn
    assert accuracy(targets, scores, threshold=threshold) == accuracy_score(targets, scores >= threshold)


@given(labelled_scores(least_of_each=2))
def test_standard_error_with_one_image_a_patient_is_plain_delong(drawn):
    targets, scores = drawn
    expected = plain_delong(targets, scores)
    assert auc_standard_error(targets, scores, np.arange(len(targets))) == pytest.approx(expected, abs=1e-9)


def plain_delong(targets, scores):
    """DeLong 1988 as printed: every positive compared with every negative."""
    positives, negatives = scores[targets == 1], scores[targets == 0]
    wins = (positives[:, None] > negatives).astype(float) + 0.5 * (positives[:, None] == negatives)
    return math.sqrt(wins.mean(axis=1).var(ddof=1) / len(positives) + wins.mean(axis=0).var(ddof=1) / len(negatives))


def correlated_patients(seed, patients=150):
    """Several images a patient that share most of their score, so that images alone overstate the evidence."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 8, patients))
    sick = rng.random(patients) < 0.4
    targets = np.where(rng.random(len(who)) < 0.85, sick[who], ~sick[who]).astype(np.float32)
    scores = targets + 1.2 * rng.standard_normal(patients)[who] + 0.5 * rng.standard_normal(len(who))
    return targets, scores, who


def test_standard_error_matches_a_patient_bootstrap():
    targets, scores, who = correlated_patients(seed=1)
    rng = np.random.default_rng(2)
    images_of = [np.flatnonzero(who == patient) for patient in range(who.max() + 1)]
    areas = []
    for _ in range(1500):
        rows = np.concatenate([images_of[patient] for patient in rng.integers(0, len(images_of), len(images_of))])
        areas.append(auc(targets[rows], scores[rows]))
    clustered = auc_standard_error(targets, scores, who)
    # The bootstrap's own error at 1,500 draws is 1 / sqrt(2 * 1500) = 1.8 %; the two methods differ by a few per cent.
    assert clustered == pytest.approx(np.std(areas), rel=0.08)
    assert auc_standard_error(targets, scores, np.arange(len(who))) < 0.75 * clustered


def test_standard_error_covers_the_true_area_at_its_nominal_rate():
    truth = np.mean([auc(*correlated_patients(seed, patients=3000)[:2]) for seed in range(1000, 1008)])
    covered = []
    for seed in range(300):
        targets, scores, who = correlated_patients(seed)
        low, high = auc_interval(auc(targets, scores), auc_standard_error(targets, scores, who))
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_standard_error_does_not_depend_on_the_order_or_names_of_patients():
    targets, scores, who = correlated_patients(seed=3)
    order = np.random.default_rng(0).permutation(len(who))
    names = np.array([f"p{7 * patient % 151}" for patient in who])
    assert auc_standard_error(targets[order], scores[order], names[order]) == pytest.approx(
        auc_standard_error(targets, scores, who), abs=1e-12
    )


@given(st.floats(0.001, 0.999), st.floats(0, 0.5), st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_stays_within_0_and_1_and_holds_the_area(area, standard_error, level):
    low, high = auc_interval(area, standard_error, level=level)
    assert 0 <= low <= area + 1e-12
    assert area - 1e-12 <= high <= 1


def test_interval_is_the_wald_interval_where_the_spread_is_small():
    assert auc_interval(0.7, 0.001) == pytest.approx((0.7 - 0.00196, 0.7 + 0.00196), abs=1e-5)
    assert auc_interval(1.0, 0.0) == (1.0, 1.0)


@pytest.mark.parametrize("metric", [auc, average_precision, youden_threshold])
def test_one_class_alone_is_refused_with_the_counts(metric):
    with pytest.raises(InputError, match=r"0 images with the finding and 3 without, an AUC needs both"):
        metric(np.zeros(3), np.arange(3.0))


def test_one_patient_with_the_finding_gives_no_standard_error():
    with pytest.raises(InputError, match=r"1 patients with the finding and 3 without"):
        auc_standard_error([1, 1, 0, 0, 0], [2.0, 1.0, 0.5, 0.0, 1.5], [7, 7, 1, 2, 3])
