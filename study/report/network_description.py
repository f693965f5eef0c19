"""Describe an exported network: preprocessing, threshold, calibration and performance, the contents of acuity.json."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import brier_score_loss

from acuity.objectives.statistics.calibration import PlattScaling, fit_platt_scaling, reliability_bins
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.intervals import auc_interval
from acuity.objectives.statistics.metrics import auc, youden_threshold
from acuity.objectives.training.network import normalisation
from acuity.objectives.training.own_function import is_own_function
from acuity.study.config.caveats import caveats
from acuity.study.registry.record import Registered
from acuity.study.report.exported_network import ChosenNetwork
from acuity.study.results.doubts import confirmed_doubts, search_doubts

_AUTOCAST = ", computed under torch.autocast(dtype=torch.bfloat16), its last layer and the score in float32"
"""The threshold, calibration and performance of a bf16 network hold for bf16; fp32 gives other scores."""


def describe_network(
    registered: Registered, chosen: ChosenNetwork, network: torch.nn.Module, *, test_uses: int
) -> dict[str, Any]:
    """The data besides the weights that a user needs to compute and interpret a score, as JSON types.

    test_uses: the number of confirmations on the same test patients.
    """
    experiment, hyperparameters = registered.experiment, chosen.hyperparameters
    validation = chosen.scores[chosen.scores["part"] == "validation"]
    threshold = youden_threshold(validation["target"], validation["score"])
    recalibration = fit_platt_scaling(validation["target"], validation["score"])
    mean, std = normalisation(network)
    performance = [
        _performance(str(part), chosen.scores[chosen.scores["part"] == part], threshold, recalibration)
        for part in chosen.scores["part"].unique()
    ]
    return {
        "label": chosen.label,
        "status": "confirmed" if chosen.confirmed else "not confirmed: validation patients only, optimistic",
        "intended_use": "research only, not for clinical use",
        "warnings": [*caveats(experiment), *_doubts(chosen, performance)],
        "network": {
            "architecture": hyperparameters.architecture,
            "own_functions": registered.sources,
            "resolution": hyperparameters.resolution,
            "batch_size": hyperparameters.batch_size,
            "learning_rate": hyperparameters.learning_rate,
            "epochs": hyperparameters.epochs,
            "precision": hyperparameters.precision,
            "seed": chosen.seed,
            "trials_searched": chosen.trials,
            "initial_weights": _initial_weights(registered, hyperparameters.architecture),
        },
        "preprocessing": {
            "channels": 1,
            "grey_values": "8 bits, black 0",
            "fit": experiment.data.fit,
            "resolution": hyperparameters.resolution,
            "reduced_by": "area average from the original",
            "network_input": hyperparameters.side,
            "enlarged_by": "bilinear" if hyperparameters.side != hyperparameters.resolution else None,
            "mean": mean,
            "std": std,
        },
        "output": f"one logit{_AUTOCAST if hyperparameters.precision == 'bf16' else ''}; score = 1 / (1 + exp(-logit))",
        "threshold": {"score": threshold, "chosen_by": "Youden's J on validation patients"},
        "calibration": asdict(recalibration)
        | {
            "formula": "probability = 1 / (1 + exp(-(slope * logit + intercept)))",
            "fitted_on": "validation patients",
            "reliability": [
                asdict(each)
                for each in reliability_bins(validation["target"], recalibration(validation["score"]), bins=5)
            ],
        },
        "performance": performance,
        "confirmation": _confirmation(chosen, test_uses),
        "made_with": {name: version(name) for name in ("acuity-hpo", "torch", "timm")}
        | {
            "index_sha256": registered.identity.index_sha256,
            "split_sha256": registered.identity.split_sha256,
        },
    }


def _doubts(chosen: ChosenNetwork, performance: list[dict[str, Any]]) -> tuple[str, ...]:
    if chosen.confirmed is None:
        (validation,) = performance
        return search_doubts(chosen.label, auc=validation["auc"], low=validation["auc_low"])
    return confirmed_doubts(chosen.label, _confirmed_at(chosen, chosen.hyperparameters.resolution))


def _confirmed_at(chosen: ChosenNetwork, resolution: int) -> dict[str, Any]:
    entries: list[dict[str, Any]] = (chosen.confirmed or {})["by_resolution"]
    return next(each for each in entries if each["resolution"] == resolution)


def _initial_weights(registered: Registered, architecture: str) -> str:
    training = registered.experiment.training
    if is_own_function(architecture):
        return "its function's"
    if training.pretrained:
        return "timm's pretrained weights"
    return f"the file {training.weights.name}" if training.weights else "random"


def _performance(part: str, scores: pd.DataFrame, threshold: float, recalibration: PlattScaling) -> dict[str, Any]:
    """Performance of the network on one part. The interval is clustered by patient and ignores the seeds' variance."""
    targets, values = scores["target"].to_numpy(), scores["score"].to_numpy()
    area = auc(targets, values)
    low, high = auc_interval(area, auc_standard_error(targets, values, scores["patient"].to_numpy()))
    positive = targets == 1
    found = values >= threshold
    return {
        "part": part,
        "images": len(scores),
        "patients": int(scores["patient"].nunique()),
        "positive_images": int(positive.sum()),
        "positive_patients": int(scores.loc[positive, "patient"].nunique()),
        "auc": area,
        "auc_low": low,
        "auc_high": high,
        "sensitivity": float(found[positive].mean()),
        "specificity": float((~found[~positive]).mean()),
        "brier": float(brier_score_loss(targets, values)),
        "brier_calibrated": float(brier_score_loss(targets, recalibration(values))),
    }


def _confirmation(chosen: ChosenNetwork, test_uses: int) -> dict[str, Any] | None:
    if chosen.confirmed is None:
        return None
    at = _confirmed_at(chosen, chosen.hyperparameters.resolution)
    return {
        "sentence": chosen.confirmed["smallest_adequate"]["sentence"],
        "reference": chosen.confirmed["reference"]["resolution"],
        "design": chosen.confirmed["design"],
        "test_uses": test_uses,
        "over_seeds": {key: at[key] for key in ("auc", "auc_low", "auc_high", "seeds", "seed_sd")},
        "subgroups": [
            each for each in chosen.confirmed["subgroups"] if each["resolution"] == chosen.hyperparameters.resolution
        ],
    }
