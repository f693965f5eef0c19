"""`acuity export`: write one network to a folder that timm loads, with its settings and its model card."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from sklearn.metrics import brier_score_loss

from acuity.objectives.statistics.calibration import Recalibration, fit_recalibration, reliability_bins
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.intervals import auc_interval
from acuity.objectives.statistics.metrics import auc, youden_threshold
from acuity.objectives.training.network import normalisation
from acuity.objectives.training.prediction import load_predictor
from acuity.storage.confirmations import count_test_uses
from acuity.storage.database import Database
from acuity.study.config.schema import caveats
from acuity.study.dataset.demographics import Cohort, read_cohort_here
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.report.exported_network import ChosenNetwork, choose_network
from acuity.study.report.rendering import render

WEIGHTS, CONFIG, USE, CARD = "model.safetensors", "config.json", "acuity.json", "README.md"
_AUTOCAST = ", computed under torch.autocast(dtype=torch.bfloat16) and then in float32"
"""The precision behind a bf16 network's threshold, calibration and performance; fp32 gives other scores."""


def export_network(
    database: Database,
    registered: Registered,
    label: str,
    out: Path,
    *,
    resolution: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write a label's network to the folder out: weights, timm's config, how to use it, and its model card.

    resolution: by default the reference, before confirmation the search's best. A folder with anything in it is
    refused. Returns what is written to acuity.json.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name another folder with --out")
    chosen = choose_network(database, registered, label, resolution=resolution, device=device)
    # safetensors writes contiguous tensors only.
    predictor = load_predictor(chosen.checkpoint, chosen.hyperparameters, device=torch.device("cpu"))
    network = predictor.network.to(memory_format=torch.contiguous_format)
    use = _use(database, registered, chosen, network)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / WEIGHTS).write_bytes(save(dict(network.state_dict()), metadata={"format": "pt"}))
        (out / CONFIG).write_text(json.dumps(_timm_config(chosen, network), indent=2) + "\n", encoding="utf-8")
        (out / USE).write_text(json.dumps(use, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (out / CARD).write_text(_card(chosen, use, read_cohort_here(registered)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
    return use


def _timm_config(chosen: ChosenNetwork, network: torch.nn.Module) -> dict[str, Any]:
    """The configuration that timm reads; it holds img_size for networks that are built for one size."""
    hyperparameters = chosen.hyperparameters
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every network
    mean, std = normalisation(network)
    arguments: dict[str, Any] = {"in_chans": 1, "num_classes": 1}
    if config.get("fixed_input_size"):
        arguments["img_size"] = hyperparameters.side
    return {
        "architecture": hyperparameters.architecture.partition(".")[0],
        "num_classes": 1,
        "label_names": [chosen.label],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [1, hyperparameters.side, hyperparameters.side],
            "fixed_input_size": bool(config.get("fixed_input_size")),
            "mean": [mean],
            "std": [std],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "num_classes": 1,
            "first_conv": config.get("first_conv"),
            "classifier": config.get("classifier"),
        },
    }


def _use(database: Database, registered: Registered, chosen: ChosenNetwork, network: torch.nn.Module) -> dict[str, Any]:
    """Everything besides the weights that a user needs to compute and read a score, as JSON types."""
    experiment, hyperparameters = registered.experiment, chosen.hyperparameters
    validation = chosen.scores[chosen.scores["part"] == "validation"]
    threshold = youden_threshold(validation["target"], validation["score"])
    recalibration = fit_recalibration(validation["target"], validation["score"])
    mean, std = normalisation(network)
    parts = [str(part) for part in chosen.scores["part"].unique()]
    return {
        "label": chosen.label,
        "status": "confirmed" if chosen.confirmed else "not confirmed: validation patients only, optimistic",
        "intended_use": "research only, not for clinical use",
        "warnings": list(caveats(experiment)),
        "network": {
            "architecture": hyperparameters.architecture,
            "resolution": hyperparameters.resolution,
            "batch_size": hyperparameters.batch_size,
            "learning_rate": hyperparameters.learning_rate,
            "epochs": hyperparameters.epochs,
            "precision": hyperparameters.precision,
            "seed": chosen.seed,
            "trials_searched": chosen.trials,
            "initial_weights": _initial_weights(registered),
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
        "performance": [
            _performance(part, chosen.scores[chosen.scores["part"] == part], threshold, recalibration) for part in parts
        ],
        "confirmation": _confirmation(chosen, count_test_uses(database, registered.identity.whole_split_sha256)),
        "made_with": {name: version(name) for name in ("acuity-hpo", "torch", "timm")}
        | {
            "index_sha256": registered.identity.index_sha256,
            "split_sha256": registered.identity.split_sha256,
        },
    }


def _initial_weights(registered: Registered) -> str:
    training = registered.experiment.training
    if training.pretrained:
        return "timm's pretrained weights"
    return f"the file {training.weights.name}" if training.weights else "random"


def _performance(part: str, scores: pd.DataFrame, threshold: float, recalibration: Recalibration) -> dict[str, Any]:
    """Performance of this network on one part; the interval is clustered by patient, without variance between seeds."""
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
    at = next(
        each for each in chosen.confirmed["by_resolution"] if each["resolution"] == chosen.hyperparameters.resolution
    )
    return {
        "sentence": chosen.confirmed["smallest_adequate"]["sentence"],
        "reference": chosen.confirmed["reference"]["resolution"],
        "test_uses": test_uses,
        "over_seeds": {key: at[key] for key in ("auc", "auc_low", "auc_high", "seeds", "seed_sd")},
        "subgroups": [
            each for each in chosen.confirmed["subgroups"] if each["resolution"] == chosen.hyperparameters.resolution
        ],
    }


def _card(chosen: ChosenNetwork, use: dict[str, Any], cohort: Cohort | None) -> str:
    of_label = None if cohort is None else next(each for each in cohort.labels if each.label == chosen.label)
    side = chosen.hyperparameters.side
    return render("model_card.md.jinja", **use, cohort=cohort, of_label=of_label, side=side)
