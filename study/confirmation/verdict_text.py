"""The verdict on a label in sentences, with the numbers behind it."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from acuity.objectives.statistics.estimates import AucEstimate
from acuity.objectives.statistics.intervals import CHANCE
from acuity.objectives.statistics.multiple_comparisons import Comparison
from acuity.objectives.statistics.noninferiority import (
    NoninferiorityTest,
    NoninferiorityVerdict,
    decisive_test,
    folds_to_decide,
    networks_to_decide,
    outcome_of_tests,
    patients_to_decide,
)
from acuity.objectives.statistics.power import MIN_NEGATIVE_PATIENTS, MIN_POSITIVE_PATIENTS
from acuity.study.config.schema import MAX_FOLDS
from acuity.study.confirmation.nomination import MAX_AUC_GAP, SkippedResolution
from acuity.study.confirmation.protocol import LabelProtocol
from acuity.study.units import counted, signed

_LEVEL = 0.05
_MOST_NETWORKS = 1000
"""The sentence names no larger number of additional networks of a resolution: training them is not practical."""


def verdict_sentence(
    protocol: LabelProtocol,
    verdict: NoninferiorityVerdict,
    *,
    reference: AucEstimate,
    comparisons: Sequence[Comparison],
    untrained_folds: int = 0,
) -> str:
    """The verdict on a label, its decisive test, the next smaller resolution, and the resolutions that were skipped.

    untrained_folds: number of the design's folds that are not trained. Each would add test patients.
    """
    if verdict.verdict == "not_estimable":
        return f"{protocol.label}: not estimable, {_reason(verdict, reference=reference)}."
    failed = _failed_tests(verdict)
    named = f"The reference is {reference.resolution} px (AUC {reference.auc:.3f})."
    skipped = map(_skipped_resolution, protocol.skipped)
    if verdict.verdict == "undecided":
        open_test = _undecided(failed, protocol, untrained_folds=untrained_folds)
        return " ".join([f"{protocol.label}: undecided.", *open_test, named, *skipped])
    assert verdict.resolution is not None
    if verdict.against is None:
        sentences = [f"{protocol.label} needs {verdict.resolution} px, the largest confirmed resolution."]
    else:
        sentences = [_shown(protocol, verdict), *_better_resolutions(comparisons, verdict)]
    next_smaller = _next_smaller_resolution(failed, protocol, untrained_folds=untrained_folds)
    return " ".join([*sentences, *next_smaller, named, *skipped])


def _reason(verdict: NoninferiorityVerdict, *, reference: AucEstimate) -> str:
    if verdict.reason == "positive_patients":
        return f"with {verdict.positive_patients} positive patients; {MIN_POSITIVE_PATIENTS} are needed"
    if verdict.reason == "negative_patients":
        return f"with {verdict.negative_patients} negative patients; {MIN_NEGATIVE_PATIENTS} are needed"
    return (
        f"since the reference of {reference.resolution} px is not shown to be better than chance (AUC "
        f"{reference.auc:.3f}, 95 % {reference.auc_low:.3f} to {reference.auc_high:.3f}; the lower limit must be above "
        f"{CHANCE:g})"
    )


def _failed_tests(verdict: NoninferiorityVerdict) -> tuple[NoninferiorityTest, ...]:
    """The tests of the largest resolution that was tested and not shown."""
    by_resolution = [tuple(tests) for _, tests in groupby(verdict.steps, key=lambda step: step.resolution)]
    failed = (tests for tests in by_resolution if outcome_of_tests(tests) != "shown")
    return max(failed, key=lambda tests: tests[0].resolution, default=())


def _shown(protocol: LabelProtocol, verdict: NoninferiorityVerdict) -> str:
    test = decisive_test([step for step in verdict.steps if step.resolution == verdict.resolution])
    return (
        f"{protocol.label} needs {test.resolution} px: shown to lose less than {test.margin:g} AUC against every "
        f"larger confirmed resolution (closest: {test.reference} px, difference {signed(test.difference)}, at least "
        f"{signed(test.difference_low)}; p = {test.p_value:.2g}; best of "
        f"{counted(protocol.finalist(test.resolution).trials, 'trial')})."
    )


def _better_resolutions(comparisons: Sequence[Comparison], verdict: NoninferiorityVerdict) -> Iterator[str]:
    """A sentence for each larger resolution that is better than the verdict's, by less than the margin."""
    for each in comparisons:
        difference = each.difference  # the smaller resolution's AUC less the larger's
        if difference.resolution == verdict.resolution and difference.difference < 0 and each.p_value_holm <= _LEVEL:
            yield (
                f"{difference.reference} px is shown to be better, by less than {verdict.margin:g} "
                f"({signed(-difference.difference)}, 95 % {signed(-difference.difference_high)} to "
                f"{signed(-difference.difference_low)})."
            )


def _next_smaller_resolution(
    failed: Sequence[NoninferiorityTest], protocol: LabelProtocol, *, untrained_folds: int
) -> Iterator[str]:
    """The result of the next smaller resolution than the verdict's."""
    if not failed:
        yield "No smaller resolution was confirmed."
    elif outcome_of_tests(failed) == "worse":
        test = decisive_test(failed)
        yield (
            f"{test.resolution} px is shown to lose more than {test.margin:g} ({signed(test.difference)} against "
            f"{test.reference} px)."
        )
    else:
        yield from _undecided(failed, protocol, untrained_folds=untrained_folds)


def _undecided(failed: Sequence[NoninferiorityTest], protocol: LabelProtocol, *, untrained_folds: int) -> Iterator[str]:
    """The comparison that is open, and what would decide it."""
    test = decisive_test(failed)
    yield (
        f"Whether {test.resolution} px loses less than {test.margin:g} AUC against {test.reference} px is open "
        f"(difference {signed(test.difference)}, at least {signed(test.difference_low)})."
    )
    options = [*_more_patients(failed), *_more_networks(failed, protocol)]
    if options:
        yield f"About {' or '.join(options)} would decide it."
    else:
        yield "Neither more patients alone nor more networks alone would decide it."
    more = folds_to_decide(failed)
    if more is None and untrained_folds and not options:
        more = untrained_folds
        adds = "fold adds both, but decides" if more == 1 else f"{more} folds add both, but decide"
        yield f"The remaining {adds} it with less than 80 % power."
    if more is not None:
        yield (
            f"`acuity confirm FILE` with min_folds = {len(protocol.folds) + more} under [confirm] trains "
            f"{counted(more, 'more fold')}. This is another use of the test patients."
        )


def _more_patients(failed: Sequence[NoninferiorityTest]) -> Iterator[str]:
    more = patients_to_decide(failed)
    if more is not None:
        yield counted(more, "more positive patient")


def _more_networks(failed: Sequence[NoninferiorityTest], protocol: LabelProtocol) -> Iterator[str]:
    more = folds_to_decide(failed) or networks_to_decide(failed)
    if more is None or more > _MOST_NETWORKS:
        return
    if not protocol.folds:
        yield counted(more, "more seed")
    elif (folds := len(protocol.folds) + more) <= MAX_FOLDS:
        yield f"{folds} trained folds in place of {len(protocol.folds)}"


def _skipped_resolution(skipped: SkippedResolution) -> str:
    reasons = {
        "no_complete_trial": "no complete trial",
        "below_best": f"validation AUC {skipped.validation_auc or 0:.3f}, more than {MAX_AUC_GAP:g} below the best",
        "not_named": "the experiment names other resolutions to confirm",
        "not_needed": "a larger resolution loses more than the margin on validation patients",
    }
    return f"{skipped.resolution} px was not confirmed ({reasons[skipped.reason]})."
