"""Sentences that come before a result that may be chance: no AUC above 0.5, or validation and test that disagree."""

import math
from typing import Any

from acuity.objectives.statistics.intervals import CHANCE

NEAR_CHANCE = 0.05
"""A plot whose lowest AUC is at most this much above 0.5 has the line at 0.5."""
_GAP_QUANTILE = 2.5758
"""Number of standard errors on each side of a two-sided 99 % interval. At 95 %, half of the experiments with 14 labels
would have a warning by chance."""


def search_doubts(label: str, *, auc: float, low: float) -> tuple[str, ...]:
    """The warning of a label that is searched and not confirmed.

    auc, low: the best validation AUC and the lower limit of its 95 % interval.
    """
    return _chance(label, auc=auc, low=low, patients="validation patients", whose="The search's best")


def confirmed_doubts(label: str, tested: dict[str, Any]) -> tuple[str, ...]:
    """The warnings of a confirmed label.

    tested: the entry of the reference, or of the resolution of another network, under by_resolution in the results of
    the confirmation (verdict.conclude_label).
    """
    whose = f"At {tested['resolution']} px the"
    chance = _chance(label, auc=tested["auc"], low=tested["auc_low"], patients="test patients", whose=whose)
    return (*chance, *_gap(label, tested))


def _chance(label: str, *, auc: float, low: float, patients: str, whose: str) -> tuple[str, ...]:
    if low > CHANCE:
        return ()
    return (
        f"{label}: not shown to be better than chance on {patients}. {whose} AUC is {auc:.3f}, and its lower 95 % "
        f"limit {low:.3f} is not above {CHANCE:g}.",
    )


def _gap(label: str, tested: dict[str, Any]) -> tuple[str, ...]:
    """The two AUCs are of different patients. The variance over seeds is in the test AUC's standard error."""
    if tested["validation_se"] is None:
        return ()
    gap = tested["validation_auc"] - tested["auc"]
    half_width = _GAP_QUANTILE * math.hypot(tested["se"], tested["validation_se"])
    if abs(gap) <= half_width:
        return ()
    return (
        f"{label}: the validation AUC ({tested['validation_auc']:.3f}) and the test AUC ({tested['auc']:.3f}) at "
        f"{tested['resolution']} px differ by {abs(gap):.3f}. Their errors explain at most {half_width:.3f} (99 %).",
    )
