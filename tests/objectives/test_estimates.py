"""Intervals, noninferiority tests, comparisons and power against known AUCs and calculations by hand."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import multivariate_normal, norm
from scipy.stats import t as student

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.difference import difference_interval, difference_standard_error, t_statistic
from acuity.objectives.statistics.estimates import (
    ResolutionEstimates,
    estimate_auc,
    estimate_difference,
    estimate_ratio,
    estimate_resolutions,
    make_auc_pair,
)
from acuity.objectives.statistics.intervals import auc_interval, hanley_mcneil_variance, satterthwaite_degrees
from acuity.objectives.statistics.multiple_comparisons import adjust_holm, compare_pairs, find_not_worse
from acuity.objectives.statistics.noninferiority import check_noninferiority, find_smallest_noninferior
from acuity.objectives.statistics.power import estimate_power


@pytest.fixture(scope="module")
def simulation() -> Iterator[ModuleType]:
    """The module benchmarks/validity/coverage.py. The tests run a few hundred of its 5,000 repetitions."""
    path = Path(__file__).parents[2] / "benchmarks" / "validity" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def make_estimates(
    aucs: dict[int, float], *, se: float = 0.02, correlation: float = 0.95, seed_sd: float = 0.004, patients: int = 400
) -> ResolutionEstimates:
    """Estimates with three seeds per resolution, spaced evenly around its AUC."""
    count = len(aucs)
    matrix = np.full((count, count), correlation * se**2)
    np.fill_diagonal(matrix, se**2)
    return ResolutionEstimates(
        resolutions=tuple(sorted(aucs)),
        aucs=tuple(aucs[each] for each in sorted(aucs)),
        seed_aucs=tuple((aucs[each] - seed_sd, aucs[each], aucs[each] + seed_sd) for each in sorted(aucs)),
        patient_covariance=matrix,
        patient_degrees=np.full((count, count), patients - 1.0),
        positive_patients=patients,
        negative_patients=4 * patients,
    )


def test_variance_is_the_sum_over_patients_and_seeds() -> None:
    estimate = estimate_auc(make_estimates({64: 0.8}, se=0.02, seed_sd=0.03, patients=50), 64)
    assert estimate.se == pytest.approx(math.sqrt(0.02**2 + 0.03**2 / 3))
    assert estimate.seed_sd == pytest.approx(0.03)
    parts = (0.02**2, 0.03**2 / 3)
    assert estimate.degrees_of_freedom == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 49 + parts[1] ** 2 / 2))
    half = student.ppf(0.975, estimate.degrees_of_freedom) * estimate.se / (0.8 * 0.2)
    assert estimate.auc_low == pytest.approx(1 / (1 + math.exp(-(math.log(4) - half))))
    assert estimate.auc_high == pytest.approx(1 / (1 + math.exp(-(math.log(4) + half))))


@given(st.floats(0.001, 0.999), st.floats(0, 0.5), st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_is_within_0_and_1_and_contains_the_auc(auc: float, se: float, level: float) -> None:
    low, high = auc_interval(auc, se, quantile=norm.ppf((1 + level) / 2))
    assert 0 <= low <= auc + 1e-12
    assert auc - 1e-12 <= high <= 1


@given(st.floats(0.001, 0.999), st.floats(1e-6, 0.5))
def test_interval_of_95_percent_is_walds_on_the_logit_scale(auc: float, se: float) -> None:
    half = norm.ppf(0.975) * se / (auc * (1 - auc))
    expected = (expit(logit(auc) - half), expit(logit(auc) + half))
    assert auc_interval(auc, se) == pytest.approx(expected, abs=1e-12)
    assert auc_interval(auc, se, patients=(50, 50)) == auc_interval(auc, se)


def test_interval_is_the_wald_interval_where_the_standard_error_is_small() -> None:
    assert auc_interval(0.7, 0.001) == pytest.approx((0.7 - 0.00196, 0.7 + 0.00196), abs=1e-5)
    assert auc_interval(1.0, 0.0) == (1.0, 1.0)


def test_components_are_averaged_over_seeds_before_the_variance_over_patients() -> None:
    generator = np.random.default_rng(1)
    targets = np.repeat([1, 0], [40, 160])
    scores = {64: generator.standard_normal((2, 200)) + targets, 128: generator.standard_normal((3, 200)) + targets}
    found = estimate_resolutions(targets, scores, np.arange(200))
    assert found.resolutions == (64, 128)
    assert [len(aucs) for aucs in found.seed_aucs] == [2, 3]
    assert found.positive_patients == 40
    # The scores are independent, so the variance of the mean of three seeds is a third of the variance of one seed.
    single = estimate_resolutions(targets, {128: scores[128][[0, 0, 0]]}, np.arange(200))
    assert found.patient_covariance[1, 1] < 0.5 * single.patient_covariance[0, 0]


def test_perfect_auc_has_an_interval() -> None:
    for patients, lowest in ((40, 0.93), (400, 0.99)):
        estimate = estimate_auc(make_estimates({64: 1.0}, se=0, seed_sd=0, patients=patients), 64)
        assert estimate.se == 0
        assert lowest < estimate.auc_low < lowest + 0.03
        assert estimate.auc_high == 1
    # At the lower limit, an AUC of 1 is `quantile` expected standard errors away.
    low, _ = auc_interval(1.0, 0.0, quantile=2.0, patients=(40, 100))
    se = math.sqrt(hanley_mcneil_variance(low, positive_patients=40, negative_patients=100))
    assert (1 - low) / se == pytest.approx(2.0)


def test_perfect_networks_on_few_patients_are_undecided() -> None:
    perfect = make_estimates({64: 1.0, 128: 1.0}, se=0, seed_sd=0, patients=40)
    assert find_smallest_noninferior(perfect, reference=128, margin=0.02).verdict == "undecided"
    more = replace(perfect, positive_patients=150)
    assert find_smallest_noninferior(more, reference=128, margin=0.02).resolution == 64


def test_expected_variance_agrees_with_the_binormal_model() -> None:
    auc, positives, negatives = 0.8, 200, 200
    shift = norm.ppf(auc)
    q = multivariate_normal(cov=[[1, 0.5], [0.5, 1]]).cdf([shift, shift])
    exact = (auc * (1 - auc) + (positives + negatives - 2) * (q - auc**2)) / (positives * negatives)
    found = hanley_mcneil_variance(auc, positive_patients=positives, negative_patients=negatives)
    assert found == pytest.approx(exact, rel=0.05)  # the formula assumes exponential scores, the model normal scores


def test_difference_of_aucs_far_from_1_is_the_plain_t_interval() -> None:
    found = estimate_difference(make_estimates({64: 0.51, 128: 0.50}, se=0.01), 64, reference=128)
    assert found.se == pytest.approx(math.sqrt(2 * 0.05 * 0.01**2 + 2 * 0.004**2 / 3))
    parts = ((2 * 0.05 * 0.01**2, 399.0), (0.004**2 / 3, 2.0), (0.004**2 / 3, 2.0))
    assert found.degrees_of_freedom == pytest.approx(satterthwaite_degrees(*parts))
    half = student.ppf(0.975, found.degrees_of_freedom) * found.se
    assert (found.difference_low, found.difference_high) == pytest.approx((0.01 - half, 0.01 + half), abs=2e-4)
    assert found.p_value == pytest.approx(2 * student.sf(0.01 / found.se, found.degrees_of_freedom), rel=0.01)


def test_interval_of_a_difference_near_1_is_wider_below() -> None:
    found = estimate_difference(make_estimates({64: 0.97, 128: 0.95}, se=0.01, correlation=0), 64, reference=128)
    half = student.ppf(0.975, found.degrees_of_freedom) * found.se
    assert found.difference_low < 0.02 - 1.05 * half
    equal = estimate_difference(make_estimates({64: 0.97, 128: 0.97}, se=0.01, correlation=0), 64, reference=128)
    assert equal.difference_low == pytest.approx(-equal.difference_high)


def test_limits_are_where_the_statistic_reaches_its_quantile() -> None:
    pair = make_auc_pair(make_estimates({64: 0.93, 128: 0.95}), 64, reference=128)
    for limit, sign in zip(difference_interval(pair, level=0.9), (1, -1), strict=True):
        statistic, degrees = t_statistic(pair, value=limit)
        assert statistic == pytest.approx(sign * student.ppf(0.95, degrees))
    # By hand, at the lower limit: the standard errors are moved to two AUCs with this difference.
    limit = difference_interval(pair, level=0.9)[0]
    at_null = 0.94 + limit / 2, 0.94 - limit / 2
    weights = np.array([at_null[0] * (1 - at_null[0]) / (0.93 * 0.07), -at_null[1] * (1 - at_null[1]) / (0.95 * 0.05)])
    patients = 0.02**2 * np.array([[1, 0.95], [0.95, 1]])
    se = math.sqrt(weights @ (patients + 0.004**2 / 3 * np.eye(2)) @ weights)
    assert se > difference_standard_error(pair)[0]
    assert t_statistic(pair, value=limit)[0] == pytest.approx((0.93 - 0.95 - limit) / se)


def test_standard_error_of_a_test_is_never_below_the_observed_one() -> None:
    # At the tested value of 0 both AUCs are .6: moved there, the standard errors differ by less than as observed.
    pair = make_auc_pair(make_estimates({64: 0.55, 128: 0.65}, correlation=0.99), 64, reference=128)
    assert abs(t_statistic(pair, value=0.0)[0]) <= 0.1 / difference_standard_error(pair)[0] + 1e-12


def test_limit_that_no_auc_reaches_is_the_end_of_the_scale() -> None:
    low, high = difference_interval(
        make_auc_pair(make_estimates({64: 0.8, 128: 0.8}, se=0.6, correlation=0, patients=5), 64, reference=128),
        level=0.95,
    )
    assert (low, high) == pytest.approx((-0.8, 0.8))


def test_seeds_are_not_paired_across_resolutions() -> None:
    one = make_estimates({64: 0.78, 128: 0.80})
    turned = replace(one, seed_aucs=(one.seed_aucs[0][::-1], one.seed_aucs[1]))
    assert estimate_difference(one, 64, reference=128) == estimate_difference(turned, 64, reference=128)


def test_difference_with_exchanged_resolutions_changes_its_sign_only() -> None:
    one = make_estimates({64: 0.90, 128: 0.94})
    there, back = estimate_difference(one, 64, reference=128), estimate_difference(one, 128, reference=64)
    assert there.difference == -back.difference
    assert (there.difference_low, there.difference_high) == pytest.approx((-back.difference_high, -back.difference_low))
    assert there.p_value == pytest.approx(back.p_value)


@pytest.mark.parametrize("auc", [0.6, 0.8, 0.96])
@pytest.mark.parametrize("loss", [-0.02, 0.0, 0.015, 0.03, 0.06])
def test_noninferiority_test_agrees_with_its_limit(auc: float, loss: float) -> None:
    step = check_noninferiority(make_estimates({64: auc - loss, 128: auc}), 64, reference=128, margin=0.02)
    assert (step.outcome == "shown") == (step.difference_low > -0.02) == (step.p_value < 0.05)
    assert (step.p_value > 0.5) == (step.difference < -0.02)
    two_sided = estimate_difference(make_estimates({64: auc - loss, 128: auc}), 64, reference=128)
    assert (two_sided.p_value < 0.05) == (two_sided.difference_low > 0 or two_sided.difference_high < 0)


def test_p_value_is_that_of_the_t_distribution() -> None:
    step = check_noninferiority(make_estimates({64: 0.5, 128: 0.5}, se=0.01), 64, reference=128, margin=0.01)
    assert step.p_value == pytest.approx(student.sf(0.01 / step.se, step.degrees_of_freedom), rel=0.01)


def test_fixed_sequence_stops_at_the_first_failure() -> None:
    # 32 px would be shown, but 64 px was not.
    answer = find_smallest_noninferior(
        make_estimates({32: 0.80, 64: 0.785, 96: 0.80, 128: 0.80, 256: 0.802}, seed_sd=0.001),
        reference=128,
        margin=0.02,
    )
    assert answer.verdict == "shown"
    assert answer.resolution == 96
    assert [(step.resolution, step.reference) for step in answer.steps] == [
        (128, 256), (96, 256), (96, 128), (64, 256), (64, 128), (64, 96)
    ]  # fmt: skip
    # The numbers are those of the test with the largest p value.
    assert (answer.against, answer.p_value) == (256, answer.steps[1].p_value)
    assert answer.auc_difference == pytest.approx(-0.002)
    assert answer.steps[2].p_value < answer.steps[1].p_value < 0.05
    failed = answer.steps[3:]
    assert {step.outcome for step in failed} == {"undecided"}
    assert answer.more_positive_patients == max(step.more_positive_patients or 0 for step in failed)


@pytest.mark.parametrize("reference", [32, 64, 128])
def test_verdict_does_not_depend_on_the_reference(reference: int) -> None:
    # The reference is chosen by the validation AUC of the tested networks, so chance favours it.
    estimates = make_estimates({32: 0.80, 64: 0.80, 128: 0.81}, seed_sd=0.001)
    assert check_noninferiority(estimates, 32, reference=64, margin=0.02).outcome == "shown"
    assert check_noninferiority(estimates, 64, reference=128, margin=0.02).outcome == "undecided"
    answer = find_smallest_noninferior(estimates, reference=reference, margin=0.02)
    assert (answer.verdict, answer.against) == ("undecided", 128)
    assert [step.resolution for step in answer.steps] == [64]
    assert answer.p_value is not None
    assert answer.p_value > 0.05
    assert answer.more_positive_patients is not None


def test_resolution_between_two_worse_ones_is_the_verdict() -> None:
    aucs = {32: 0.70, 64: 0.70, 96: 0.78, 128: 0.80, 256: 0.80}
    answer = find_smallest_noninferior(make_estimates(aucs), reference=64, margin=0.02)
    assert (answer.verdict, answer.resolution, answer.against) == ("shown", 128, 256)
    assert [step.resolution for step in answer.steps] == [128, 96, 96]


def test_worse_resolution_is_shown_at_the_level_divided_by_its_number_of_tests() -> None:
    # One of two tests has an opposite p value between .025 and .05.
    estimates = make_estimates({64: 0.80, 96: 0.833, 128: 0.834})
    opposite = 1 - check_noninferiority(estimates, 64, reference=128, margin=0.02).p_value
    assert 0.025 < opposite < 0.05
    answer = find_smallest_noninferior(estimates, reference=64, margin=0.02)
    assert (answer.verdict, answer.resolution) == ("shown", 96)
    against_128 = answer.steps[1]
    assert (against_128.resolution, against_128.reference, against_128.outcome) == (64, 128, "undecided")
    # One loss above the margin decides the resolution, so the other comparisons need no more patients.
    assert answer.more_positive_patients == against_128.more_positive_patients


def test_patients_that_would_show_a_loss_are_counted_at_the_level_of_that_test() -> None:
    estimates = make_estimates({64: 0.80, 128: 0.83}, seed_sd=0.001)

    def more_patients(level: float, level_of_worse: float) -> int:
        test = check_noninferiority(
            estimates, 64, reference=128, margin=0.02, level=level, level_of_worse=level_of_worse
        )
        assert test.outcome == "undecided"
        assert test.more_positive_patients is not None
        return test.more_positive_patients

    assert more_patients(0.05, 0.025) == more_patients(0.025, 0.025) > more_patients(0.05, 0.05)


def test_largest_resolution_is_the_verdict_where_the_next_one_is_shown_to_be_worse() -> None:
    answer = find_smallest_noninferior(make_estimates({64: 0.72, 128: 0.80}), reference=128, margin=0.02)
    assert (answer.verdict, answer.resolution, answer.auc_difference, answer.p_value) == ("shown", 128, 0.0, None)
    assert answer.steps[0].outcome == "worse"
    assert answer.more_positive_patients is None
    alone = find_smallest_noninferior(make_estimates({64: 0.72}), reference=64, margin=0.02)
    assert (alone.verdict, alone.resolution, alone.steps) == ("shown", 64, ())


def test_undecided_verdict_has_the_number_of_patients_that_would_decide_it() -> None:
    def at(patients: int) -> ResolutionEstimates:
        return make_estimates({64: 0.795, 128: 0.80}, se=0.3 / math.sqrt(patients), seed_sd=0.002, patients=patients)

    answer = find_smallest_noninferior(at(100), reference=128, margin=0.02)
    assert (answer.verdict, answer.resolution) == ("undecided", None)
    assert answer.auc_difference == pytest.approx(-0.005)
    assert answer.more_positive_patients is not None
    # By hand, without logits: the gap of .015 must be t(.95) + t(.8) standard errors.
    patients = 100 + answer.more_positive_patients
    parts = ((2 * 0.05 * 0.3**2 / patients, patients - 1.0), (0.002**2 / 3, 2.0), (0.002**2 / 3, 2.0))
    degrees = satterthwaite_degrees(*parts)
    needed = (student.ppf(0.95, degrees) + student.ppf(0.8, degrees)) * math.sqrt(sum(part for part, _ in parts))
    assert needed == pytest.approx(0.015, rel=0.04)
    assert find_smallest_noninferior(at(patients), reference=128, margin=0.02).verdict == "shown"


def test_no_number_of_patients_compensates_for_the_variance_over_seeds() -> None:
    answer = find_smallest_noninferior(make_estimates({64: 0.80, 128: 0.80}, seed_sd=0.03), reference=128, margin=0.02)
    assert answer.verdict == "undecided"
    assert answer.more_positive_patients is None


def test_untrained_folds_add_patients_and_networks() -> None:
    estimates = make_estimates({64: 0.80, 128: 0.80}, se=0.03, seed_sd=0.015)
    test = check_noninferiority(estimates, 64, reference=128, margin=0.02, untrained_folds=17)
    assert test.outcome == "undecided"
    assert test.more_positive_patients is None
    assert test.more_folds is not None
    assert test.more_networks is None or test.more_networks > test.more_folds

    def standard_errors(folds: int) -> float:
        """Number of standard errors in the margin less those of the test with 80 % power, by hand without logits."""
        parts = (2 * 0.05 * 0.03**2 * 3 / folds, 400 * folds / 3 - 1), *2 * ((0.015**2 / folds, folds - 1),)
        degrees = satterthwaite_degrees(*parts)
        needed = student.ppf(0.95, degrees) + student.ppf(0.8, degrees)
        return 0.02 / math.sqrt(sum(part for part, _ in parts)) - needed

    assert standard_errors(3 + test.more_folds - 1) < 0 <= standard_errors(3 + test.more_folds)
    fewer = check_noninferiority(estimates, 64, reference=128, margin=0.02, untrained_folds=test.more_folds - 1)
    assert fewer.more_folds is None


def test_fewer_than_30_positive_patients_are_not_estimable() -> None:
    answer = find_smallest_noninferior(
        make_estimates({64: 0.80, 128: 0.80}, se=1e-4, patients=29), reference=128, margin=0.02
    )
    assert (answer.verdict, answer.resolution, answer.p_value) == ("not_estimable", None, None)
    assert answer.reason == "positive_patients"
    assert (answer.positive_patients, answer.more_positive_patients) == (29, 1)
    enough = find_smallest_noninferior(make_estimates({64: 0.8, 128: 0.8}, patients=30), reference=128, margin=0.02)
    assert enough.verdict != "not_estimable"


def test_fewer_than_10_negative_patients_are_not_estimable() -> None:
    estimates = make_estimates({64: 0.80, 128: 0.80})
    few = find_smallest_noninferior(replace(estimates, negative_patients=9), reference=128, margin=0.02)
    assert (few.verdict, few.reason, few.more_positive_patients) == ("not_estimable", "negative_patients", None)
    enough = find_smallest_noninferior(replace(estimates, negative_patients=10), reference=128, margin=0.02)
    assert enough.verdict != "not_estimable"
    assert not estimate_power(200, 9).estimable
    assert estimate_power(200, 10).estimable


def test_reference_without_a_lower_limit_above_chance_is_not_estimable() -> None:
    aucs = {64: 0.528, 128: 0.52}
    chance = find_smallest_noninferior(make_estimates(aucs), reference=64, margin=0.02)
    assert estimate_auc(make_estimates(aucs), 64).auc_low < 0.5
    assert (chance.verdict, chance.reason, chance.resolution) == ("not_estimable", "chance", None)
    assert (chance.p_value, chance.steps, chance.more_positive_patients) == (None, (), None)
    better = find_smallest_noninferior(make_estimates(aucs, se=0.01), reference=64, margin=0.02)
    assert better.verdict != "not_estimable"


def test_invalid_arguments_are_rejected_with_the_next_step() -> None:
    one = make_estimates({64: 0.8, 128: 0.8})
    with pytest.raises(InputError, match=r"96 px was not confirmed. There are: 64, 128"):
        estimate_difference(one, 96, reference=128)
    with pytest.raises(InputError, match=r"margin is 0, must be between 0 and 0.5 AUC"):
        check_noninferiority(one, 64, reference=128, margin=0)
    with pytest.raises(InputError, match=r"64 px has 1 seed, need at least 2"):
        estimate_resolutions([1, 0], {64: [[0.3, 0.2]]}, [1, 2])


def test_holm_by_hand() -> None:
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def test_resolutions_not_shown_worse_than_any_other() -> None:
    comparisons = compare_pairs(make_estimates({32: 0.65, 64: 0.79, 128: 0.80, 256: 0.805}))
    assert len(comparisons) == 6
    assert find_not_worse(comparisons) == (64, 128, 256)
    assert all(comparison.p_value_holm >= comparison.difference.p_value for comparison in comparisons)
    by_chance = make_estimates({32: 0.80, 64: 0.80, 128: 0.80})
    assert find_not_worse(compare_pairs(by_chance)) == (32, 64, 128)


def test_ratio_of_the_paper() -> None:
    ratio = estimate_ratio(make_estimates({64: 0.689, 320: 0.854}, seed_sd=0.01), 64, reference=320)
    assert ratio.ratio == pytest.approx(0.807, abs=5e-4)
    generator = np.random.default_rng(0)
    drawn = generator.normal(0.689, 0.01, 200_000) / generator.normal(0.854, 0.01, 200_000)
    assert ratio.seed_sd == pytest.approx(drawn.std(), rel=0.02)


def test_planned_margin_has_the_planned_power() -> None:
    plan = estimate_power(200, 900, auc=0.8, correlation=0.9, seed_sd=0.006, seeds=5)
    assert plan.estimable
    assert plan.margin is not None
    # With test parts of that size and equally good resolutions, the test succeeds in 80 % of the repetitions.
    generator = np.random.default_rng(11)
    shift = norm.ppf(0.8) * math.sqrt(2)
    targets = np.repeat([1, 0], [200, 900])
    shown = 0
    for _ in range(400):
        # Scores with a correlation of .9 have AUCs with a slightly smaller correlation. Seeds differ only in skill.
        common = math.sqrt(0.9) * generator.standard_normal(1100)
        own = math.sqrt(0.1) * generator.standard_normal((2, 1100))
        skill = shift + 0.006 / (norm.pdf(norm.ppf(0.8)) / math.sqrt(2)) * generator.standard_normal((2, 5, 1))
        scores = (common + own)[:, None] + skill * targets
        found = estimate_resolutions(targets, {64: scores[0], 128: scores[1]}, np.arange(1100))
        step = check_noninferiority(found, 64, reference=128, margin=plan.margin)
        shown += step.outcome == "shown"
    assert shown / 400 == pytest.approx(0.8, abs=0.08)


def test_hernia_needs_a_larger_margin_than_effusion() -> None:
    hernia, effusion = (estimate_power(*patients, seed_sd=0.008) for patients in ((32, 2765), (1100, 1697)))
    assert hernia.estimable
    assert hernia.margin is not None
    assert effusion.margin is not None
    assert hernia.margin > 0.05 > 0.025 > effusion.margin
    assert hernia.auc_half_width is not None
    assert hernia.auc_half_width > 0.08
    assert not estimate_power(29, 2000).estimable
    assert estimate_power(1, 2000).margin is None


def test_intervals_cover_known_aucs_and_the_type_i_error_is_nominal(simulation: ModuleType) -> None:
    found = simulation.simulate(simulation.SCENARIOS[1], repetitions=300, seed=12)
    # With 300 repetitions the standard errors of 95 % and 5 % are 1.3 %, and that of 85 % is 2 %.
    assert 0.92 <= found["auc_covered"] <= 0.985
    assert 0.92 <= found["difference_covered"] <= 0.99
    assert found["wrongly_shown"] <= 0.05 + 2 * 0.0126
    assert found["ignoring_patients"] < 0.90


def test_intervals_that_ignore_seeds_do_not_cover(simulation: ModuleType) -> None:
    scenario = replace(simulation.SCENARIOS[-1], patients=500, skill_sd=0.25)
    found = simulation.simulate(scenario, repetitions=200, seed=13)
    assert found["ignoring_seeds"] < 0.85
    assert 0.92 <= found["auc_covered"] <= 0.985


def test_fixed_sequence_rarely_returns_a_resolution_that_is_too_small(simulation: ModuleType) -> None:
    wrong, named = simulation.simulate_step_down(simulation.STEP_DOWN, margin=0.02, repetitions=150, seed=14)
    assert wrong <= 0.05 + 2 * 0.018
    assert named["96"] > named.get("64", 0)


def test_verdict_against_every_larger_resolution_holds_its_level_where_the_reference_alone_does_not(
    simulation: ModuleType,
) -> None:
    scenario = simulation.make_verdict_scenario("boundary at top", positives=40, seeds=3)
    found = simulation.simulate_verdicts(scenario, repetitions=200, seed=15)
    assert found["every_larger"]["too_small"] <= 0.05 + 2 * 0.0154
    assert found["reference_alone"]["too_small"] > 0.10
    assert found["patients"]["positive"] == pytest.approx(40, abs=1)
