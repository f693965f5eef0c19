"""Results of a label from the scores of all seeds: verdict, intervals, subgroups, the metrics of the paper.

The results have JSON types. They are stored with the confirmation and displayed unchanged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.bootstrap import bootstrap_aucs
from acuity.objectives.statistics.calibration import reliability_bins
from acuity.objectives.statistics.estimates import (
    ResolutionEstimates,
    estimate_auc,
    estimate_ratio,
    estimate_resolutions,
)
from acuity.objectives.statistics.metrics import (
    accuracy,
    average_precision,
    sensitivity_at_specificity,
    youden_threshold,
)
from acuity.objectives.statistics.multiple_comparisons import compare_pairs, find_not_worse
from acuity.objectives.statistics.noninferiority import NoninferiorityVerdict, find_smallest_noninferior
from acuity.study.confirmation.protocol import Finalist, LabelProtocol
from acuity.study.confirmation.verdict_text import verdict_sentence

SUBGROUPS = ("view", "sex", "age_band")
_PAPER_RESOLUTIONS = (64, 320)
"""Resolutions (px) of the ratio of AUCs in Sabottke & Spieler."""
_BOOTSTRAP_REPETITIONS = 500
ScoreTables = Mapping[int, Sequence[pd.DataFrame]]
"""Resolution -> one table of scores (scoring.COLUMNS) per seed, all with the same images in the same order."""


def conclude_label(
    protocol: LabelProtocol, tables: ScoreTables, *, margin: float, part: str = "test"
) -> dict[str, Any]:
    """Results of a label on the images of a part, with the frozen reference and margin.

    tables: scores of the part and of validation images. Thresholds and calibration are computed on the validation
    images. InputError with fewer than 2 positive or 2 negative patients.
    """
    evaluated = {resolution: [table[table["part"] == part] for table in seeds] for resolution, seeds in tables.items()}
    images = next(iter(evaluated.values()))[0]
    estimates = _estimate(images, evaluated)
    verdict = find_smallest_noninferior(estimates, reference=protocol.reference, margin=margin)
    comparisons = compare_pairs(estimates)
    by_resolution = [
        _resolution_entry(estimates, finalist, tables[finalist.resolution], evaluated[finalist.resolution])
        for finalist in protocol.finalists
    ]
    reference = next(entry for entry in by_resolution if entry["resolution"] == protocol.reference)
    result = {
        "label": protocol.label,
        "best": _best(protocol.finalist(protocol.reference), reference, part=part),
        "reference": {"resolution": protocol.reference, "auc": reference["auc"]},
        "smallest_adequate": _verdict_entry(verdict)
        | {
            "sentence": verdict_sentence(
                protocol,
                verdict,
                reference=estimate_auc(estimates, protocol.reference),
                comparisons=comparisons,
            )
        },
        "skipped": [asdict(each) for each in protocol.skipped],
        "by_resolution": by_resolution,
        "steps": [asdict(step) for step in verdict.steps],
        "comparisons": [asdict(each.difference) | {"p_value_holm": each.p_value_holm} for each in comparisons],
        "not_worse": list(find_not_worse(comparisons)) or [protocol.reference],
        "ratio": _ratio(estimates, protocol.reference),
        "subgroups": _subgroups(images, evaluated),
        "check": _bootstrap_check(estimates, protocol.reference, images, evaluated),
        "images": len(images),
        "patients": int(images["patient"].nunique()),
        "positive_patients": estimates.positive_patients,
        "negative_patients": estimates.negative_patients,
    }
    converted: dict[str, Any] = _to_json_types(result)
    return converted


def _estimate(
    images: pd.DataFrame, evaluated: ScoreTables, chosen: NDArray[np.bool_] | None = None
) -> ResolutionEstimates:
    kept = np.ones(len(images), dtype=bool) if chosen is None else chosen
    return estimate_resolutions(
        images["target"].to_numpy()[kept],
        {
            resolution: np.stack([table["score"].to_numpy()[kept] for table in seeds])
            for resolution, seeds in evaluated.items()
        },
        images["patient"].to_numpy(dtype=object)[kept].astype(str),
    )


def _best(finalist: Finalist, reference: dict[str, Any], *, part: str) -> dict[str, Any]:
    """The reference with the keys of `best` in the JSON of `acuity best`."""
    return {
        "resolution": finalist.resolution,
        "architecture": finalist.architecture,
        "batch_size": finalist.batch_size,
        "feasible_batch_size": finalist.feasible_batch_size,
        "learning_rate": finalist.learning_rate,
        "auc": reference["auc"],
        "auc_low": reference["auc_low"],
        "auc_high": reference["auc_high"],
        "split": part,
        "seeds": len(finalist.runs),
    }


def _verdict_entry(verdict: NoninferiorityVerdict) -> dict[str, Any]:
    entry = asdict(verdict)
    del entry["steps"]
    return entry


def _resolution_entry(
    estimates: ResolutionEstimates,
    finalist: Finalist,
    tables: Sequence[pd.DataFrame],
    evaluated: Sequence[pd.DataFrame],
) -> dict[str, Any]:
    """AUC of a resolution with its interval, and the other metrics of the paper as mean and SD over seeds."""
    validation = [table[table["part"] == "validation"] for table in tables]

    def over_seeds(value: Callable[[pd.DataFrame, pd.DataFrame], float]) -> dict[str, float]:
        values = [value(*images) for images in zip(validation, evaluated, strict=True)]
        return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}

    return asdict(estimate_auc(estimates, finalist.resolution)) | {
        "validation_auc": finalist.validation_auc,
        "trials": finalist.trials,
        "seed_aucs": list(estimates.seed_aucs[estimates.position(finalist.resolution)]),
        # The threshold is chosen on validation patients and applied to other patients.
        "accuracy": over_seeds(
            lambda chosen_on, images: accuracy(
                images["target"],
                images["score"],
                threshold=youden_threshold(chosen_on["target"], chosen_on["score"]),
            )
        ),
        "average_precision": over_seeds(lambda _, images: average_precision(images["target"], images["score"])),
        "sensitivity_at_90_specificity": over_seeds(
            lambda _, images: sensitivity_at_specificity(images["target"], images["score"])
        ),
        "validation_brier": over_seeds(lambda images, _: brier_score_loss(images["target"], images["score"])),
        "validation_reliability": [
            asdict(each) for each in reliability_bins(validation[0]["target"], validation[0]["score"])
        ],
    }


def _ratio(estimates: ResolutionEstimates, reference: int) -> dict[str, Any] | None:
    """Ratio of 64 px to 320 px as in the paper if both were confirmed, else of the smallest to the reference."""
    pair = (
        _PAPER_RESOLUTIONS
        if set(_PAPER_RESOLUTIONS) <= set(estimates.resolutions)
        else (estimates.resolutions[0], reference)
    )
    return None if pair[0] == pair[1] else asdict(estimate_ratio(estimates, pair[0], reference=pair[1]))


def _subgroups(images: pd.DataFrame, evaluated: ScoreTables) -> list[dict[str, Any]]:
    """AUC of each resolution in each view, sex and age band. None with too few patients."""
    entries = []
    for column in SUBGROUPS:
        groups = images[column].to_numpy(dtype=object)
        for group in sorted({str(each) for each in groups if each}):
            chosen = groups == group
            of_group = images[chosen]
            counts = {
                "by": column,
                "group": group,
                "images": len(of_group),
                "patients": int(of_group["patient"].nunique()),
                "positive_patients": int(of_group.loc[of_group["target"] == 1, "patient"].nunique()),
            }
            try:
                estimates = _estimate(images, evaluated, chosen)
            except InputError:
                entries += [counts | {"resolution": each, "auc": None} for each in sorted(evaluated)]
                continue
            entries += [counts | asdict(estimate_auc(estimates, each)) for each in estimates.resolutions]
    return entries


def _bootstrap_check(
    estimates: ResolutionEstimates, reference: int, images: pd.DataFrame, evaluated: ScoreTables
) -> dict[str, float | int]:
    """Standard error of the reference's AUC over samples of patients, by formula and by bootstrap."""
    drawn = bootstrap_aucs(
        images["target"].to_numpy(),
        np.stack([table["score"].to_numpy() for table in evaluated[reference]]),
        images["patient"].to_numpy(dtype=object).astype(str),
        repetitions=_BOOTSTRAP_REPETITIONS,
    )
    position = estimates.position(reference)
    return {
        "patient_se": math.sqrt(estimates.patient_covariance[position, position]),
        "patient_se_bootstrap": float(drawn.mean(axis=1).std(ddof=1)),
        "repetitions": _BOOTSTRAP_REPETITIONS,
    }


def _to_json_types(value: Any) -> Any:
    """Convert to JSON types: NaN and infinity to None, tuples to lists."""
    if isinstance(value, dict):
        return {key: _to_json_types(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_types(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
