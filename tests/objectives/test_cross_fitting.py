"""Cross-fitted AUCs and their variances against counts of pairs and calculations by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.cross_fitting import ImageScores, estimate_cross_fitted
from acuity.objectives.statistics.estimates import (
    ResolutionEstimates,
    estimate_auc,
    estimate_resolutions,
    make_auc_pair,
)

Floats = np.ndarray


def wins(targets: Floats, scores: Floats) -> Floats:
    """[positives, negatives]: 1 where the positive scores higher, 1/2 where both score the same."""
    above, below = scores[targets == 1], scores[targets == 0]
    return (above[:, None] > below) + 0.5 * (above[:, None] == below)


def draw(
    generator: np.random.Generator, *, patients: int, networks: int, gaps: dict[int, float], first: int = 0
) -> ImageScores:
    """One image per patient, of which a third is positive. Scores of a patient are correlated over networks."""
    targets = (np.arange(patients) % 3 == 0).astype(int)
    own = generator.normal(size=patients)
    return ImageScores(
        targets=targets,
        patients=[f"p{first + number}" for number in range(patients)],
        scores={
            resolution: own + gap * targets + 0.5 * generator.normal(size=(networks, patients))
            for resolution, gap in gaps.items()
        },
    )


def make_folds(*, folds: int = 3, networks: int = 2, seed: int = 0) -> tuple[list[ImageScores], ImageScores]:
    generator, gaps = np.random.default_rng(seed), {32: 1.0, 64: 1.3}
    parts = [
        draw(generator, patients=40 + 3 * fold, networks=networks, gaps=gaps, first=100 * fold) for fold in range(folds)
    ]
    return parts, draw(generator, patients=60, networks=folds * networks, gaps=gaps, first=9000)


def test_auc_and_standard_error_agree_with_pairs_within_folds() -> None:
    folds, validation = make_folds()
    estimates = estimate_cross_fitted(folds, validation=validation)
    variance, aucs = 0.0, {32: 0.0, 64: 0.0}
    for fold in folds:
        means = {
            resolution: np.mean([wins(fold.targets, row) for row in rows], axis=0)
            for resolution, rows in fold.scores.items()
        }
        for resolution, mean in means.items():
            aucs[resolution] += mean.mean() / 3
        difference = means[32] - means[64]
        # DeLong 1988 within the fold: the variance of the components of the positives, and of the negatives.
        variance += np.var(difference.mean(axis=1), ddof=1) / difference.shape[0] / 9
        variance += np.var(difference.mean(axis=0), ddof=1) / difference.shape[1] / 9
    assert {each: estimates.auc(each) for each in (32, 64)} == pytest.approx(aucs)
    matrix = estimates.patient_covariance
    assert matrix[0, 0] + matrix[1, 1] - 2 * matrix[0, 1] == pytest.approx(variance)

    spread = {
        resolution: np.var([wins(validation.targets, row).mean() for row in rows], ddof=1) / 6
        for resolution, rows in validation.scores.items()
    }
    assert make_auc_pair(estimates, 32, reference=64).seed_variances == pytest.approx((spread[32], spread[64]))
    estimate = estimate_auc(estimates, 32)
    assert estimate.se == pytest.approx(math.sqrt(matrix[0, 0] + spread[32]))
    assert estimate.seeds == 6
    assert estimates.positive_patients == sum(int(np.sum(fold.targets)) for fold in folds)


def test_one_fold_has_the_estimates_of_held_out_patients() -> None:
    """With one fold, and validation images that are the fold's, both designs are the same calculation."""
    (fold,), _ = make_folds(folds=1, networks=4)
    cross_fitted = estimate_cross_fitted([fold], validation=fold)
    held_out = estimate_resolutions(fold.targets, fold.scores, fold.patients)
    for resolution in (32, 64):
        assert vars(estimate_auc(cross_fitted, resolution)) == pytest.approx(vars(estimate_auc(held_out, resolution)))
    assert cross_fitted.patient_degrees == pytest.approx(held_out.patient_degrees)


def test_images_of_a_patient_are_one_cluster() -> None:
    """Each image twice: the variance over patients stays, as if each patient had one image."""
    folds, validation = make_folds()
    twice = [
        ImageScores(
            np.repeat(fold.targets, 2),
            np.repeat(fold.patients, 2),
            {resolution: np.repeat(rows, 2, axis=1) for resolution, rows in fold.scores.items()},
        )
        for fold in folds
    ]
    once = estimate_cross_fitted(folds, validation=validation)
    again = estimate_cross_fitted(twice, validation=validation)
    assert again.patient_covariance == pytest.approx(once.patient_covariance)
    assert again.aucs == pytest.approx(once.aucs)


def test_scores_of_different_folds_are_not_compared() -> None:
    """A network that scores all images of its fold higher changes nothing: an AUC over all images would change."""
    folds, validation = make_folds()
    moved = [
        ImageScores(fold.targets, fold.patients, {px: rows + 10.0 * number for px, rows in fold.scores.items()})
        for number, fold in enumerate(folds)
    ]
    before, after = (estimate_cross_fitted(each, validation=validation) for each in (folds, moved))
    assert after.aucs == before.aucs
    assert after.patient_covariance == pytest.approx(before.patient_covariance)


def test_more_folds_are_more_precise_and_the_standard_error_is_that_of_repetitions() -> None:
    """The standard deviation of the AUC over drawn patients is the mean standard error."""
    gaps = {32: 1.0}

    def repeat(folds: int) -> list[ResolutionEstimates]:
        generator = np.random.default_rng(folds)
        return [
            estimate_cross_fitted(
                [draw(generator, patients=60, networks=1, gaps=gaps, first=100 * fold) for fold in range(folds)],
                validation=draw(generator, patients=60, networks=max(folds, 2), gaps=gaps),
            )
            for _ in range(400)
        ]

    errors = []
    for folds in (2, 4):
        found = repeat(folds)
        spread = np.std([each.auc(32) for each in found], ddof=1)
        expected = np.mean([math.sqrt(each.patient_covariance[0, 0]) for each in found])
        assert spread == pytest.approx(expected, rel=0.12)
        errors.append(expected)
    assert all(later == pytest.approx(before / math.sqrt(2), rel=0.05) for before, later in pairwise(errors))


def test_fold_with_one_positive_patient_is_rejected() -> None:
    folds, validation = make_folds()
    few = ImageScores([1, 0, 0], ["a", "b", "c"], {px: np.zeros((2, 3)) for px in (32, 64)})
    with pytest.raises(InputError, match="1 patients with the finding"):
        estimate_cross_fitted([*folds, few], validation=validation)
    alone = ImageScores(validation.targets, validation.patients, {32: np.zeros((1, 60))})
    with pytest.raises(InputError, match="32 px has 1 network"):
        estimate_cross_fitted(folds, validation=alone)
