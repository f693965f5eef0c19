"""Results of a label from the scores of all networks: verdict, intervals, subgroups, the metrics of the paper.

The results have JSON types. They are stored with the confirmation and displayed unchanged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.bootstrap import bootstrap_aucs
from acuity.objectives.statistics.calibration import reliability_bins
from acuity.objectives.statistics.cross_fitting import ImageScores, estimate_cross_fitted
from acuity.objectives.statistics.estimates import (
    ResolutionEstimates,
    estimate_auc,
    estimate_ratio,
    estimate_resolutions,
)
from acuity.objectives.statistics.metrics import (
    accuracy,
    auc,
    average_precision,
    sensitivity_at_specificity,
    youden_threshold,
)
from acuity.objectives.statistics.multiple_comparisons import compare_pairs, find_not_worse
from acuity.objectives.statistics.noninferiority import NoninferiorityVerdict, find_smallest_noninferior
from acuity.study.confirmation.protocol import Finalist, LabelProtocol
from acuity.study.confirmation.verdict_text import verdict_sentence
from acuity.study.dataset.design import Design
from acuity.study.units import finite

SUBGROUPS = ("view", "sex", "age_band")
_PAPER_RESOLUTIONS = (64, 320)
"""Resolutions (px) of the ratio of AUCs in Sabottke & Spieler."""
_BOOTSTRAP_REPETITIONS = 500
ScoreTables = Mapping[int, Sequence[pd.DataFrame]]
"""Resolution -> one table of scores (scoring.COLUMNS) per network. The networks of one fold have the same images in the
same order, and all networks have the same validation images."""


@dataclass(frozen=True, eq=False)
class _Fold:
    """The scores of the test patients of a fold, or of all test patients."""

    images: pd.DataFrame
    """One row per image, without a score."""
    scores: dict[int, NDArray[np.float64]]
    """Resolution -> [networks, images]."""

    def select(self, chosen: NDArray[np.bool_]) -> "_Fold":
        return _Fold(self.images[chosen], {resolution: rows[:, chosen] for resolution, rows in self.scores.items()})

    def to_scores(self) -> ImageScores:
        patients = self.images["patient"].to_numpy(dtype=object).astype(str)
        return ImageScores(self.images["target"].to_numpy(), patients, self.scores)


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """The scores on which a label is concluded."""

    folds: tuple[_Fold, ...]
    validation: _Fold | None
    """Of all networks, if the variance over seeds is estimated there: for cross-fitted networks."""

    @property
    def images(self) -> pd.DataFrame:
        """All test images, each once."""
        return pd.concat([fold.images for fold in self.folds], ignore_index=True)

    def select(self, column: str, group: str) -> "_Evaluated":
        """The test images of a group alone, with all validation images.

        The validation patients of a group are few, or of one kind. Intervals with the variance over seeds of these few
        are twice as wide and cover 98 to 99 %. With all validation patients they cover 96 to 97 %, and 93 % if networks
        differ more than twice as much on this group as overall (benchmarks/validity/subgroup_coverage.py).
        """
        folds = tuple(each.select(each.images[column].to_numpy(dtype=object) == group) for each in self.folds)
        return _Evaluated(folds, self.validation)

    def estimate(self) -> ResolutionEstimates:
        if self.validation is None:
            (all_patients,) = (fold.to_scores() for fold in self.folds)
            return estimate_resolutions(all_patients.targets, all_patients.scores, all_patients.patients)
        return estimate_cross_fitted([fold.to_scores() for fold in self.folds], validation=self.validation.to_scores())


def conclude_label(
    protocol: LabelProtocol, tables: ScoreTables, design: Design, *, margin: float, part: str = "test"
) -> dict[str, Any]:
    """Results of a label on the images of a part, with the frozen reference and margin.

    tables: scores of the part and of validation images. Thresholds and calibration are computed on the validation
    images. part: "test", or "external" for images that all networks score. InputError with fewer than 2 positive or 2
    negative patients, in each fold of a cross-fitted design.
    """
    of_part = {resolution: [table[table["part"] == part] for table in each] for resolution, each in tables.items()}
    evaluated = _evaluate(protocol, tables, of_part, part=part)
    estimates, images = evaluated.estimate(), evaluated.images
    untrained_folds = (design.folds or 0) - len(protocol.folds) if part == "test" else 0
    verdict = find_smallest_noninferior(
        estimates, reference=protocol.reference, margin=margin, untrained_folds=untrained_folds
    )
    comparisons = compare_pairs(estimates)
    by_resolution = [
        _resolution_entry(estimates, finalist, tables[finalist.resolution], of_part[finalist.resolution])
        for finalist in protocol.finalists
    ]
    reference = next(entry for entry in by_resolution if entry["resolution"] == protocol.reference)
    result = {
        "label": protocol.label,
        "design": asdict(design),
        "best": _best(protocol.finalist(protocol.reference), reference, part=part),
        "reference": {"resolution": protocol.reference, "auc": reference["auc"]},
        "smallest_adequate": _verdict_entry(verdict)
        | {
            "sentence": verdict_sentence(
                protocol,
                verdict,
                reference=estimate_auc(estimates, protocol.reference),
                comparisons=comparisons,
                untrained_folds=untrained_folds,
            )
        },
        "skipped": [asdict(each) for each in protocol.skipped],
        "by_resolution": by_resolution,
        "steps": [asdict(step) for step in verdict.steps],
        "comparisons": [asdict(each.difference) | {"p_value_holm": each.p_value_holm} for each in comparisons],
        "not_worse": list(find_not_worse(comparisons)) or [protocol.reference],
        "ratio": _ratio(estimates, protocol.reference),
        "subgroups": _subgroups(evaluated),
        "check": _bootstrap_check(estimates, protocol.reference, evaluated),
        "images": len(images),
        "patients": int(images["patient"].nunique()),
        "positive_patients": estimates.positive_patients,
        "negative_patients": estimates.negative_patients,
    }
    converted: dict[str, Any] = finite(result)
    return converted


def _evaluate(
    protocol: LabelProtocol,
    tables: ScoreTables,
    of_part: Mapping[int, Sequence[pd.DataFrame]],
    *,
    part: str,
) -> _Evaluated:
    runs = {finalist.resolution: finalist.runs for finalist in protocol.finalists}
    if not protocol.folds or part != "test":
        return _Evaluated((_stack(of_part),), validation=None)
    of_folds = (
        {
            resolution: [table for table, run in zip(each, runs[resolution], strict=True) if run.fold == fold]
            for resolution, each in of_part.items()
        }
        for fold in protocol.folds
    )
    validation = {
        resolution: [table[table["part"] == "validation"] for table in each] for resolution, each in tables.items()
    }
    return _Evaluated(tuple(map(_stack, of_folds)), validation=_stack(validation))


def _stack(tables: Mapping[int, Sequence[pd.DataFrame]]) -> _Fold:
    """The scores of tables with the same images."""
    images = next(iter(tables.values()))[0].drop(columns="score")
    return _Fold(
        images,
        {resolution: np.stack([table["score"].to_numpy() for table in each]) for resolution, each in tables.items()},
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
    """AUC of a resolution with its interval, and the other metrics of the paper as mean and SD over its networks."""
    validation = [table[table["part"] == "validation"] for table in tables]

    def over_seeds(value: Callable[[pd.DataFrame, pd.DataFrame], float]) -> dict[str, float]:
        values = [value(*images) for images in zip(validation, evaluated, strict=True)]
        return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}

    return asdict(estimate_auc(estimates, finalist.resolution)) | {
        "validation_auc": finalist.validation_auc,
        "validation_se": _validation_se(validation),
        "trials": finalist.trials,
        # Of each network on its test patients. Those of another fold are other patients.
        "seed_aucs": [auc(images["target"], images["score"]) for images in evaluated],
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


def _validation_se(validation: Sequence[pd.DataFrame]) -> float | None:
    """Standard error of the mean validation AUC over samples of patients. None with too few validation patients."""
    images = validation[0]
    scores = np.stack([table["score"].to_numpy() for table in validation])
    patients = images["patient"].to_numpy(dtype=object).astype(str)
    try:
        estimates = estimate_resolutions(images["target"].to_numpy(), {0: scores}, patients)
    except InputError:
        return None
    return math.sqrt(float(estimates.patient_covariance[0, 0]))


def _ratio(estimates: ResolutionEstimates, reference: int) -> dict[str, Any] | None:
    """Ratio of 64 px to 320 px as in the paper if both were confirmed, else of the smallest to the reference.

    None with one resolution, and where an AUC is 0.
    """
    pair = (
        _PAPER_RESOLUTIONS
        if set(_PAPER_RESOLUTIONS) <= set(estimates.resolutions)
        else (estimates.resolutions[0], reference)
    )
    has_zero = any(estimates.auc(each) == 0 or not any(estimates.seed_aucs[estimates.position(each)]) for each in pair)
    if pair[0] == pair[1] or has_zero:
        return None
    return asdict(estimate_ratio(estimates, pair[0], reference=pair[1]))


def _subgroups(evaluated: _Evaluated) -> list[dict[str, Any]]:
    """AUC of each resolution in each view, sex and age band. None with too few patients."""
    entries, images = [], evaluated.images
    for column in SUBGROUPS:
        groups = images[column].to_numpy(dtype=object)
        for group in sorted({str(each) for each in groups if each}):
            of_group = images[groups == group]
            counts = {
                "by": column,
                "group": group,
                "images": len(of_group),
                "patients": int(of_group["patient"].nunique()),
                "positive_patients": int(of_group.loc[of_group["target"] == 1, "patient"].nunique()),
            }
            try:
                estimates = evaluated.select(column, group).estimate()
            except InputError:
                resolutions = sorted(evaluated.folds[0].scores)
                entries += [counts | {"resolution": each, "auc": None} for each in resolutions]
                continue
            entries += [counts | asdict(estimate_auc(estimates, each)) for each in estimates.resolutions]
    return entries


def _bootstrap_check(estimates: ResolutionEstimates, reference: int, evaluated: _Evaluated) -> dict[str, float | int]:
    """Standard error of the reference's AUC over samples of patients, by formula and by bootstrap within each fold."""
    drawn = [
        bootstrap_aucs(
            scores.targets, scores.scores[reference], scores.patients, repetitions=_BOOTSTRAP_REPETITIONS, seed=number
        ).mean(axis=1)
        for number, scores in enumerate(fold.to_scores() for fold in evaluated.folds)
    ]
    position = estimates.position(reference)
    return {
        "patient_se": math.sqrt(estimates.patient_covariance[position, position]),
        "patient_se_bootstrap": float(np.mean(drawn, axis=0).std(ddof=1)),
        "repetitions": _BOOTSTRAP_REPETITIONS,
    }
