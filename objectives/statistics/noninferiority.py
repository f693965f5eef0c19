"""The smallest resolution that is non-inferior to the reference resolution."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import stdtrit
from scipy.stats import t as student

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.difference import Contrast, difference_limits, difference_spread, t_statistic
from acuity.objectives.statistics.estimates import Measured, contrast_of
from acuity.objectives.statistics.power import FEWEST_POSITIVE_PATIENTS

_MOST_PATIENTS = 10_000_000


@dataclass(frozen=True)
class NonInferiority:
    """The test that a resolution's AUC is less than a margin below the AUC of the reference."""

    resolution: int
    reference: int
    difference: float
    """AUC of the resolution less that of the reference."""
    difference_low: float
    """One-sided lower limit. It is above -margin if and only if the outcome is "shown"."""
    margin: float
    se: float
    degrees_of_freedom: float
    p_value: float
    """One-sided p value of a loss of the margin or more. That of a smaller loss is 1 - p_value."""
    outcome: Literal["shown", "worse", "undecided"]
    """"worse": shown to lose more than the margin."""
    more_positive_patients: int | None
    """How many would decide an undecided test at 80 % power, with negatives in proportion and the AUCs as estimated.

    None if it is decided, or if only more seeds or another margin would help."""


@dataclass(frozen=True)
class SmallestAdequate:
    """The answer for a label: the verdict and the tests behind it."""

    verdict: Literal["shown", "undecided", "not_estimable"]
    resolution: int | None
    """None unless shown. The reference itself if the next smaller resolution is shown to be worse."""
    auc_difference: float | None
    """AUC less the AUC of the reference: of `resolution`, or of the undecided resolution."""
    margin: float
    p_value: float | None
    """p value of the non-inferiority test of `auc_difference`; None for the reference itself."""
    positive_patients: int
    more_positive_patients: int | None
    """How many the last test lacks to decide the label, or to show a smaller resolution."""
    steps: tuple[NonInferiority, ...]
    """In descending order of resolution; the last is the first that failed, if one did."""


def check_non_inferiority(
    measured: Measured, resolution: int, *, reference: int, margin: float, level: float = 0.05
) -> NonInferiority:
    """Test one-sided at `level` that a resolution's AUC is less than the margin below the AUC of the reference."""
    if not 0 < margin < 0.5:
        raise InputError(f"margin is {margin}, must be between 0 and 0.5 AUC: 0.02 is usual")
    contrast = contrast_of(measured, resolution, reference=reference)
    se, degrees = difference_spread(contrast)
    p_value = float(student.sf(*t_statistic(contrast, value=-margin)))
    undecided = level < p_value < 1 - level
    return NonInferiority(
        resolution=resolution,
        reference=reference,
        difference=contrast.difference,
        difference_low=difference_limits(contrast, level=1 - 2 * level)[0],
        margin=margin,
        se=se,
        degrees_of_freedom=degrees,
        p_value=p_value,
        outcome="undecided" if undecided else "shown" if p_value <= level else "worse",
        more_positive_patients=_patients_lacking(contrast, margin=margin, level=level) if undecided else None,
    )


def find_smallest_adequate(
    measured: Measured, *, reference: int, margin: float, level: float = 0.05
) -> SmallestAdequate:
    """Test each smaller resolution against the reference, in descending order, up to the first failure.

    A fixed order needs no correction: each test has the full level, and the probability to name a resolution that loses
    the margin or more is at most that level (Maurer, Hothorn & Lehmacher 1995; Bretz et al., Stat Med
    2009;28:586-604). The order and the reference must not be chosen on these patients.
    """
    start = measured.position(reference)
    if measured.positive_patients < FEWEST_POSITIVE_PATIENTS:
        return _without_resolution(measured, verdict="not_estimable", margin=margin, steps=())
    steps: list[NonInferiority] = []
    for resolution in reversed(measured.resolutions[:start]):
        steps.append(check_non_inferiority(measured, resolution, reference=reference, margin=margin, level=level))
        if steps[-1].outcome != "shown":
            break
    if steps and steps[0].outcome == "undecided":
        return _without_resolution(measured, verdict="undecided", margin=margin, steps=tuple(steps))
    smallest = next((step for step in reversed(steps) if step.outcome == "shown"), None)
    return SmallestAdequate(
        verdict="shown",
        resolution=smallest.resolution if smallest else reference,
        auc_difference=smallest.difference if smallest else 0.0,
        margin=margin,
        p_value=smallest.p_value if smallest else None,
        positive_patients=measured.positive_patients,
        more_positive_patients=steps[-1].more_positive_patients if steps else None,
        steps=tuple(steps),
    )


def _without_resolution(
    measured: Measured,
    *,
    verdict: Literal["undecided", "not_estimable"],
    margin: float,
    steps: tuple[NonInferiority, ...],
) -> SmallestAdequate:
    lacking = FEWEST_POSITIVE_PATIENTS - measured.positive_patients
    return SmallestAdequate(
        verdict=verdict,
        resolution=None,
        auc_difference=steps[0].difference if steps else None,
        margin=margin,
        p_value=steps[0].p_value if steps else None,
        positive_patients=measured.positive_patients,
        more_positive_patients=steps[0].more_positive_patients if steps else lacking,
        steps=steps,
    )


def _patients_lacking(contrast: Contrast, *, margin: float, level: float, power: float = 0.8) -> int | None:
    """The smallest number of additional positive patients that decides the test if the difference stays the same."""

    def decided(more: int) -> bool:
        statistic, degrees = t_statistic(_with_more_patients(contrast, more), value=-margin)
        return abs(statistic) >= float(stdtrit(degrees, 1 - level) + stdtrit(degrees, power))

    enough = 1
    while not decided(enough):
        enough *= 2
        if enough > _MOST_PATIENTS:
            return None
    lacking = enough // 2
    while enough - lacking > 1:
        middle = (lacking + enough) // 2
        lacking, enough = (lacking, middle) if decided(middle) else (middle, enough)
    return enough


def _with_more_patients(contrast: Contrast, more: int) -> Contrast:
    """The contrast with more patients of both kinds, in proportion; the variances over seeds stay the same."""
    growth = 1 + more / contrast.positive_patients
    first, second = contrast.patient_variances
    return replace(
        contrast,
        patient_variances=(first / growth, second / growth),
        patient_covariance=contrast.patient_covariance / growth,
        patient_degrees=contrast.patient_degrees * growth,
        positive_patients=contrast.positive_patients + more,
        negative_patients=math.floor(contrast.negative_patients * growth),
    )
