"""The verdict of a label as a sentence that a reader who knows no statistics can use, and a reviewer can check."""

from objectives.adequacy import NonInferiority, SmallestAdequate
from objectives.planning import FEWEST_POSITIVE_PATIENTS
from study.protocol import LabelProtocol


def verdict_sentence(protocol: LabelProtocol, verdict: SmallestAdequate, *, reference_auc: float) -> str:
    """One or two sentences on a label; every number in them is of the patients that the AUCs are of."""
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
    return f"{begin} {_below(last)}".rstrip()


def _below(last: NonInferiority | None) -> str:
    """What is known of the next smaller resolution."""
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
