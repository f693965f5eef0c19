"""Noninferiority tests of resolutions against a reference, and the smallest noninferior resolution."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import stdtrit
from scipy.stats import t as student

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.difference import AucPair, difference_interval, difference_standard_error, t_statistic
from acuity.objectives.statistics.estimates import ResolutionEstimates, make_auc_pair
from acuity.objectives.statistics.power import MIN_POSITIVE_PATIENTS

_MAX_ADDITIONAL_PATIENTS = 10_000_000


@dataclass(frozen=True)
class NoninferiorityTest:
    """The test that a resolution's AUC is less than the margin below the AUC of the reference."""

    resolution: int
    reference: int
    difference: float
    """AUC of the resolution minus the AUC of the reference."""
    difference_low: float
    """One-sided lower limit. It is above -margin exactly if the outcome is "shown"."""
    margin: float
    se: float
    degrees_of_freedom: float
    p_value: float
    """One-sided. Null hypothesis: the loss is the margin or more. The p value of the opposite test is 1 - p_value."""
    outcome: Literal["shown", "worse", "undecided"]
    """"shown": noninferior. "worse": shown to lose more than the margin."""
    more_positive_patients: int | None
    """Number of additional positive patients that would decide the test at 80 % power, for the estimated AUCs and with
    negative patients in proportion. None if the test is decided, or if more patients alone cannot decide it."""


@dataclass(frozen=True)
class NoninferiorityVerdict:
    """The verdict on a label, and the tests behind it."""

    verdict: Literal["shown", "undecided", "not_estimable"]
    resolution: int | None
    """None unless shown. The reference if the next smaller resolution is shown to be worse, or was not confirmed."""
    auc_difference: float | None
    """AUC of `resolution`, or of the undecided resolution, minus the AUC of the reference."""
    margin: float
    p_value: float | None
    """p value of the noninferiority test of `auc_difference`. None for the reference."""
    positive_patients: int
    more_positive_patients: int | None
    """Number of additional positive patients that would decide the last test, or make the label estimable."""
    steps: tuple[NoninferiorityTest, ...]
    """In descending order of resolution, up to the first failure."""


def check_noninferiority(
    estimates: ResolutionEstimates, resolution: int, *, reference: int, margin: float, level: float = 0.05
) -> NoninferiorityTest:
    """Test one-sided at `level` that a resolution's AUC is less than the margin below the AUC of the reference.

    InputError for a margin that is not between 0 and 0.5.
    """
    if not 0 < margin < 0.5:
        raise InputError(f"margin is {margin}, must be between 0 and 0.5 AUC: 0.02 is usual")
    pair = make_auc_pair(estimates, resolution, reference=reference)
    se, degrees = difference_standard_error(pair)
    p_value = float(student.sf(*t_statistic(pair, value=-margin)))
    undecided = level < p_value < 1 - level
    return NoninferiorityTest(
        resolution=resolution,
        reference=reference,
        difference=pair.difference,
        difference_low=difference_interval(pair, level=1 - 2 * level)[0],
        margin=margin,
        se=se,
        degrees_of_freedom=degrees,
        p_value=p_value,
        outcome="undecided" if undecided else "shown" if p_value <= level else "worse",
        more_positive_patients=_additional_patients(pair, margin=margin, level=level) if undecided else None,
    )


def find_smallest_noninferior(
    estimates: ResolutionEstimates, *, reference: int, margin: float, level: float = 0.05
) -> NoninferiorityVerdict:
    """Test each smaller resolution against the reference, in descending order, up to the first failure.

    This fixed-sequence procedure needs no correction for multiple comparisons: each test has the full level, and the
    probability of returning a resolution that loses the margin or more is at most that level (Maurer, Hothorn &
    Lehmacher 1995; Bretz et al., Stat Med 2009;28:586-604). The order and the reference must not be chosen on these
    patients.
    """
    start = estimates.position(reference)
    if estimates.positive_patients < MIN_POSITIVE_PATIENTS:
        return _without_resolution(estimates, verdict="not_estimable", margin=margin, steps=())
    steps: list[NoninferiorityTest] = []
    for resolution in reversed(estimates.resolutions[:start]):
        steps.append(check_noninferiority(estimates, resolution, reference=reference, margin=margin, level=level))
        if steps[-1].outcome != "shown":
            break
    if steps and steps[0].outcome == "undecided":
        return _without_resolution(estimates, verdict="undecided", margin=margin, steps=tuple(steps))
    smallest = next((step for step in reversed(steps) if step.outcome == "shown"), None)
    return NoninferiorityVerdict(
        verdict="shown",
        resolution=smallest.resolution if smallest else reference,
        auc_difference=smallest.difference if smallest else 0.0,
        margin=margin,
        p_value=smallest.p_value if smallest else None,
        positive_patients=estimates.positive_patients,
        more_positive_patients=steps[-1].more_positive_patients if steps else None,
        steps=tuple(steps),
    )


def _without_resolution(
    estimates: ResolutionEstimates,
    *,
    verdict: Literal["undecided", "not_estimable"],
    margin: float,
    steps: tuple[NoninferiorityTest, ...],
) -> NoninferiorityVerdict:
    missing = MIN_POSITIVE_PATIENTS - estimates.positive_patients
    return NoninferiorityVerdict(
        verdict=verdict,
        resolution=None,
        auc_difference=steps[0].difference if steps else None,
        margin=margin,
        p_value=steps[0].p_value if steps else None,
        positive_patients=estimates.positive_patients,
        more_positive_patients=steps[0].more_positive_patients if steps else missing,
        steps=steps,
    )


def _additional_patients(pair: AucPair, *, margin: float, level: float, power: float = 0.8) -> int | None:
    """The smallest number of additional positive patients that decides the test, for the estimated difference."""

    def decided(more: int) -> bool:
        statistic, degrees = t_statistic(_with_more_patients(pair, more), value=-margin)
        return abs(statistic) >= float(stdtrit(degrees, 1 - level) + stdtrit(degrees, power))

    enough = 1
    while not decided(enough):
        enough *= 2
        if enough > _MAX_ADDITIONAL_PATIENTS:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decided(middle) else (middle, enough)
    return enough


def _with_more_patients(pair: AucPair, more: int) -> AucPair:
    """The pair with more positive patients and negative patients in proportion, and the same variances over seeds."""
    growth = 1 + more / pair.positive_patients
    first, second = pair.patient_variances
    return replace(
        pair,
        patient_variances=(first / growth, second / growth),
        patient_covariance=pair.patient_covariance / growth,
        patient_degrees=pair.patient_degrees * growth,
        positive_patients=pair.positive_patients + more,
        negative_patients=math.floor(pair.negative_patients * growth),
    )
