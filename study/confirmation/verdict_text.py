"""The verdict on a label in sentences, with the numbers behind it."""

from collections.abc import Sequence

from acuity.objectives.statistics.multiple_comparisons import Comparison
from acuity.objectives.statistics.noninferiority import NoninferiorityTest, NoninferiorityVerdict
from acuity.objectives.statistics.power import MIN_POSITIVE_PATIENTS
from acuity.study.confirmation.protocol import LabelProtocol

_LEVEL = 0.05


def verdict_sentence(
    protocol: LabelProtocol, verdict: NoninferiorityVerdict, *, reference_auc: float, comparisons: Sequence[Comparison]
) -> str:
    """The verdict on a label, its test statistics, and the comparisons with larger resolutions.

    The reference was chosen on validation patients, so a larger resolution may be better than the reference.
    """
    label, reference = protocol.label, f"the reference of {protocol.reference} px (AUC {reference_auc:.3f})"
    if verdict.verdict == "not_estimable":
        return (
            f"{label}: not estimable, with {verdict.positive_patients} positive patients; "
            f"{MIN_POSITIVE_PATIENTS} are needed."
        )
    last = verdict.steps[-1] if verdict.steps else None
    if verdict.verdict == "undecided":
        assert last is not None
        return f"{label}: undecided against {reference}. {_undecided_test(last)}. {_additional_patients(last)}"
    if verdict.resolution == protocol.reference:
        begin = f"{label} needs {protocol.reference} px, the reference itself (AUC {reference_auc:.3f})."
    else:
        shown = next(step for step in verdict.steps if step.resolution == verdict.resolution)
        trials = protocol.finalist(shown.resolution).trials
        begin = (
            f"{label} needs {shown.resolution} px: shown to lose less than {verdict.margin:g} AUC against {reference} "
            f"(difference {shown.difference:+.3f}, at least {shown.difference_low:+.3f}; p = {shown.p_value:.2g}; best "
            f"of {trials} trials)."
        )
    return " ".join(
        [begin, _next_smaller_resolution(last), *_larger_resolutions(protocol, comparisons, margin=verdict.margin)]
    )


def _undecided_test(step: NoninferiorityTest) -> str:
    return (
        f"Whether {step.resolution} px loses less than {step.margin:g} AUC is open (difference {step.difference:+.3f}, "
        f"could be {step.difference_low:+.3f})"
    )


def _additional_patients(step: NoninferiorityTest) -> str:
    if step.more_positive_patients is None:
        return "More patients alone would not decide it: more seeds may."
    return f"About {step.more_positive_patients:,} more positive patients would decide it."


def _next_smaller_resolution(last: NoninferiorityTest | None) -> str:
    """The result of the next smaller resolution than the verdict's."""
    if last is None or last.outcome == "shown":
        return "No smaller resolution was confirmed."
    if last.outcome == "worse":
        return f"{last.resolution} px is shown to lose more ({last.difference:+.3f})."
    return f"{_undecided_test(last)}. {_additional_patients(last)}"


def _larger_resolutions(protocol: LabelProtocol, comparisons: Sequence[Comparison], *, margin: float) -> list[str]:
    """A sentence for each resolution above the reference: its gain, and whether a gain above the margin is excluded."""
    sentences = []
    for each in comparisons:
        difference = each.difference  # the smaller resolution's AUC less the larger's
        if difference.resolution != protocol.reference:
            continue
        better = each.p_value_holm <= _LEVEL and difference.difference < 0
        gain = f"; that it gains more than {margin:g} is not excluded"
        is_open = not better and -difference.difference_low > margin
        sentences.append(
            f"{difference.reference} px is {'shown better' if better else 'not shown better'} than the reference "
            f"({-difference.difference:+.3f}, 95 % {-difference.difference_high:+.3f} to "
            f"{-difference.difference_low:+.3f}){gain if is_open else ''}."
        )
    return sentences
