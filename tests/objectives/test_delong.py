"""Clustered DeLong against pROC, MLstatkit, the printed formulas and the patient bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from numpy.typing import NDArray

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.bootstrap import bootstrap_aucs
from acuity.objectives.statistics.delong import (
    auc_standard_error,
    combine,
    covariance,
    degrees_of_freedom,
    delong_components,
)
from acuity.objectives.statistics.intervals import auc_interval
from acuity.objectives.statistics.metrics import auc

TARGETS = [1] * 11 + [0] * 19
SCORES = [
    [6, 7, 11, 9, 4, 7, 6, 7, 4, 8, 8, 8, 6, 6, 2, 10, 1, 7, 4, 3, 4, 4, 6, 5, 8, 1, 5, 3, 7, 1],
    [6, 8, 7, 10, 6, 9, 8, 6, 4, 7, 9, 8, 4, 5, 2, 7, 3, 6, 8, 3, 4, 5, 4, 4, 7, 4, 3, 6, 5, 3],
]


def images(
    *, patients: int, seed: int, networks: int = 3, levels: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Targets, scores and patients with several images each. `levels` rounds the scores, so that many are equal."""
    generator = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), generator.integers(1, 6, patients))
    targets = (generator.random(owner.size) < generator.beta(1, 2, patients)[owner]).astype(np.int64)
    # At least two positive and two negative patients.
    first_images = np.flatnonzero(np.diff(owner, prepend=-1))
    targets[first_images[:2]], targets[first_images[-2:]] = 1, 0
    common = generator.standard_normal(patients)[owner] + generator.standard_normal(owner.size) + targets
    scores = common + 0.5 * generator.standard_normal((networks, owner.size))
    if levels:
        scores = np.round(scores * levels / 8)
    return targets, scores, owner


def textbook(
    targets: NDArray[np.int64], scores: NDArray[np.float64], patients: NDArray[np.int64]
) -> tuple[list[float], NDArray[np.float64]]:
    """Obuchowski's formulas as printed: all pairs of images are compared, and patients are summed in a loop."""
    names = sorted(set(patients.tolist()))
    aucs, sums = [], []
    for row in scores:
        cases, controls = row[targets == 1], row[targets == 0]
        wins = (cases[:, None] > controls) + 0.5 * (cases[:, None] == controls)
        area = wins.mean()
        v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
        of_cases, of_controls = patients[targets == 1], patients[targets == 0]
        sums.append(
            [
                (
                    v10[of_cases == name].sum() - (of_cases == name).sum() * area,
                    v01[of_controls == name].sum() - (of_controls == name).sum() * area,
                )
                for name in names
            ]
        )
        aucs.append(float(area))
    m, n = int((targets == 1).sum()), int((targets == 0).sum())
    i, i10, i01 = len(names), len(set(of_cases.tolist())), len(set(of_controls.tolist()))
    matrix = np.zeros((len(scores), len(scores)))
    for k, first in enumerate(sums):
        for j, second in enumerate(sums):
            s10 = i10 / ((i10 - 1) * m) * sum(a[0] * b[0] for a, b in zip(first, second, strict=True))
            s01 = i01 / ((i01 - 1) * n) * sum(a[1] * b[1] for a, b in zip(first, second, strict=True))
            s11 = i / (i - 1) * sum(a[0] * b[1] for a, b in zip(first, second, strict=True))
            s11_back = i / (i - 1) * sum(a[1] * b[0] for a, b in zip(first, second, strict=True))
            matrix[k, j] = s10 / m + s01 / n + (s11 + s11_back) / (m * n)
    return aucs, matrix


def test_agrees_with_r_proc() -> None:
    # R 4.2.2, pROC 1.18.0, direction = "<": auc(), var(method = "delong"), cov(), on the images above.
    components = delong_components(TARGETS, SCORES, range(30))
    assert components.aucs == pytest.approx([0.74641148325358853, 0.83492822966507174], abs=1e-15)
    expected = [[0.0081106964889387442, 0.0043722289630121411], [0.0043722289630121411, 0.0054652544075863146]]
    assert covariance(components) == pytest.approx(np.array(expected), abs=1e-16)


@pytest.mark.parametrize("levels", [None, 6])
def test_agrees_with_mlstatkit(levels: int | None) -> None:
    targets, scores, _ = images(patients=120, seed=2, networks=2, levels=levels)
    components = delong_components(targets, scores, np.arange(targets.size))
    ours = combine(components, [[-1, 1]])
    z, _, _, _, first, second, info = Delong_test(targets, *scores)
    assert info["method"] == "delong"
    assert components.aucs == pytest.approx([first, second], abs=1e-10)
    assert covariance(ours)[0, 0] == pytest.approx(info["var_diff"], abs=1e-10)
    assert ours.aucs[0] / covariance(ours)[0, 0] ** 0.5 == pytest.approx(z, abs=1e-10)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), patients=st.integers(6, 40), levels=st.sampled_from([None, 3, 10]))
def test_agrees_with_the_textbook_formula_for_patients_with_several_images(
    seed: int, patients: int, levels: int | None
) -> None:
    drawn = images(patients=patients, seed=seed, levels=levels)
    components = delong_components(*drawn)
    aucs, matrix = textbook(*drawn)
    assert components.aucs == pytest.approx(aucs, abs=1e-12)
    assert covariance(components) == pytest.approx(matrix, abs=1e-12)
    assert np.linalg.eigvalsh(covariance(components)).min() > -1e-15


def test_agrees_with_the_auc_of_each_network_alone() -> None:
    targets, scores, patients = images(patients=200, seed=3, levels=20)
    assert delong_components(targets, scores, patients).aucs == pytest.approx(
        [auc(targets, row) for row in scores], abs=1e-12
    )


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 3]))
def test_standard_error_with_one_image_per_patient_is_that_of_delong(seed: int, levels: int | None) -> None:
    targets, (scores,), _ = images(patients=12, seed=seed, networks=1, levels=levels)
    positives, negatives = scores[targets == 1], scores[targets == 0]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    # DeLong 1988 as printed: all pairs of positive and negative images.
    variance = wins.mean(axis=1).var(ddof=1) / len(positives) + wins.mean(axis=0).var(ddof=1) / len(negatives)
    found = auc_standard_error(targets, scores, np.arange(targets.size))
    assert found == pytest.approx(math.sqrt(variance), abs=1e-9)


def correlated_patients(
    seed: int, patients: int = 150
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Several images per patient with correlated scores: a standard error that ignores patients is too small."""
    generator = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), generator.integers(1, 8, patients))
    sick = generator.random(patients) < 0.4
    targets = np.where(generator.random(len(owner)) < 0.85, sick[owner], ~sick[owner]).astype(np.int64)
    scores = targets + 1.2 * generator.standard_normal(patients)[owner] + 0.5 * generator.standard_normal(len(owner))
    return targets, scores, owner


def test_standard_error_matches_a_patient_bootstrap() -> None:
    targets, scores, owner = correlated_patients(seed=1)
    drawn = bootstrap_aucs(targets, scores[None], owner, repetitions=1500)
    clustered = auc_standard_error(targets, scores, owner)
    # With 1,500 samples the bootstrap's error is 1 / sqrt(2 * 1500) = 1.8 %. The two methods differ by a few per cent.
    assert clustered == pytest.approx(drawn.std(), rel=0.08)
    assert auc_standard_error(targets, scores, np.arange(len(owner))) < 0.75 * clustered


def test_interval_covers_the_true_auc_at_its_nominal_rate() -> None:
    truth = np.mean([auc(*correlated_patients(seed, patients=3000)[:2]) for seed in range(1000, 1008)])
    covered = []
    for seed in range(300):
        targets, scores, owner = correlated_patients(seed)
        low, high = auc_interval(auc(targets, scores), auc_standard_error(targets, scores, owner))
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_agrees_with_the_patient_bootstrap() -> None:
    targets, scores, patients = images(patients=400, seed=4, networks=4)
    averages = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5]]
    components = combine(delong_components(targets, scores, patients), averages)
    drawn = bootstrap_aucs(targets, scores, patients, repetitions=2000) @ np.array(averages).T
    assert drawn.mean(axis=0) == pytest.approx(components.aucs, abs=0.003)
    # With 2,000 samples the standard error of an SD is 1.6 %. The tolerance is three times that.
    assert drawn.std(axis=0) == pytest.approx(np.sqrt(np.diag(covariance(components))), rel=0.05)


def test_bootstrap_counts_ties_as_half() -> None:
    targets, scores, patients = images(patients=30, seed=5, levels=3)
    drawn = bootstrap_aucs(targets, scores, patients, repetitions=1, seed=6)[0]
    times = np.random.default_rng(6).multinomial(30, np.full(30, 1 / 30))[patients]
    repeated = [auc(np.repeat(targets, times), np.repeat(row, times)) for row in scores]
    assert drawn == pytest.approx(repeated, abs=1e-12)


def test_images_of_one_patient_are_not_independent() -> None:
    targets, scores, patients = images(patients=100, seed=7, networks=1)
    once = covariance(delong_components(targets, scores, patients))[0, 0]
    # Copies of an image add no information if they belong to the same patient.
    again = covariance(delong_components(np.tile(targets, 4), np.tile(scores, 4), np.tile(patients, 4)))[0, 0]
    as_if_new = covariance(delong_components(np.tile(targets, 4), np.tile(scores, 4), np.arange(4 * targets.size)))[
        0, 0
    ]
    assert again == pytest.approx(once, rel=1e-9)
    assert as_if_new < once / 3


def test_order_and_names_of_patients_do_not_matter() -> None:
    targets, scores, patients = images(patients=50, seed=8)
    shuffled = np.random.default_rng(9).permutation(targets.size)
    names = np.array([f"patient {number * 7919 % 1000:03d}" for number in patients])
    expected = covariance(delong_components(targets, scores, patients))
    found = covariance(delong_components(targets[shuffled], scores[:, shuffled], names[shuffled]))
    assert found == pytest.approx(expected, abs=1e-14)


def test_variance_from_few_patients_has_few_degrees_of_freedom() -> None:
    targets, scores, _ = images(patients=300, seed=10, networks=1)
    spread_out = delong_components(targets, scores, np.arange(targets.size))
    outliers = scores.copy()
    outliers[0] += 12 * targets
    outliers[0, np.flatnonzero(targets)[:3]] = -20
    assert degrees_of_freedom(spread_out)[0] > 50
    # Three patients contribute all of the variance: 2 V^2 / (sum of squares - V^2 / patients) is about 2 * 3.
    assert degrees_of_freedom(delong_components(targets, outliers, np.arange(targets.size)))[0] == pytest.approx(
        6, abs=0.2
    )


def test_perfect_network_has_no_variance_and_degrees_of_freedom_from_the_patients() -> None:
    components = delong_components([1, 1, 1, 0, 0, 0, 0], [[5, 6, 7, 1, 2, 3, 4]], range(7))
    assert covariance(components)[0, 0] == 0
    assert degrees_of_freedom(components)[0] == 2


def test_one_positive_patient_is_rejected() -> None:
    with pytest.raises(InputError, match="1 patients with the finding and 2 without, need at least 2"):
        delong_components([1, 1, 0, 0], [[1, 2, 3, 4]], [1, 1, 2, 3])
