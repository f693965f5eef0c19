"""The verdict of a label in sentences for readers without statistics, with numbers that a reviewer can check."""

from collections.abc import Sequence

from acuity.objectives.statistics.multiple_comparisons import Comparison
from acuity.objectives.statistics.noninferiority import NonInferiority, SmallestAdequate
from acuity.objectives.statistics.power import FEWEST_POSITIVE_PATIENTS
from acuity.study.confirmation.protocol import LabelProtocol

_LEVEL = 0.05


def verdict_sentence(
    protocol: LabelProtocol, verdict: SmallestAdequate, *, reference_auc: float, comparisons: Sequence[Comparison]
) -> str:
    """Sentences on a label; every number comes from the patients of the AUCs.

    They include resolutions above the reference, which was chosen on validation patients and may not be the best.
    """
    label, reference = protocol.label, f"the reference of {protocol.reference} px (AUC {reference_auc:.3f})"
    if verdict.verdict == "not_estimable":
        return (
            f"{label}: not estimable, with {verdict.positive_patients} positive patients; "
            f"{FEWEST_POSITIVE_PATIENTS} are needed."
        )
    last = verdict.steps[-1] if verdict.steps else None
    if verdict.verdict == "undecided":
        assert last is not None
        return f"{label}: undecided against {reference}. {_open_question(last)}. {_more_patients(last)}"
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
    return " ".join([begin, _below(last), *_above(protocol, comparisons, margin=verdict.margin)])


def _above(protocol: LabelProtocol, comparisons: Sequence[Comparison], *, margin: float) -> list[str]:
    """Compare each resolution above the reference with it; say where a gain above the margin is not excluded."""
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


def _below(last: NonInferiority | None) -> str:
    """The result of the next smaller resolution."""
    if last is None or last.outcome == "shown":
        return "No smaller resolution was confirmed."
    if last.outcome == "worse":
        return f"{last.resolution} px is shown to lose more ({last.difference:+.3f})."
    return f"{_open_question(last)}. {_more_patients(last)}"


def _open_question(step: NonInferiority) -> str:
    return (
        f"Whether {step.resolution} px loses less than {step.margin:g} AUC is open (difference {step.difference:+.3f}, "
        f"could be {step.difference_low:+.3f})"
    )


def _more_patients(step: NonInferiority) -> str:
    if step.more_positive_patients is None:
        return "More patients alone would not decide it: more seeds may."
    return f"About {step.more_positive_patients:,} more positive patients would decide it."
