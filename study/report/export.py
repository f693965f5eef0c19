"""`acuity export`: write one network to a folder that timm loads, with its description and its model card."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from acuity.objectives.training.network import normalisation, timm_arguments
from acuity.objectives.training.own_function import is_own_function
from acuity.objectives.training.prediction import load_network
from acuity.storage.confirmations import count_test_uses
from acuity.storage.database import Database
from acuity.study.dataset.demographics import Demographics, read_demographics
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.report.exported_network import ChosenNetwork, choose_network
from acuity.study.report.network_description import describe_network
from acuity.study.report.rendering import render

_WEIGHTS, _CONFIG, _DESCRIPTION, _CARD = "model.safetensors", "config.json", "acuity.json", "README.md"


def export_network(
    database: Database,
    registered: Registered,
    label: str,
    out: Path,
    *,
    resolution: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write the network of a label to the folder out: weights, timm's config, description and model card.

    A network of the user's has no timm's config: its model card calls the function.

    resolution: by default the reference, or the best of the search before confirmation. Returns the contents of
    acuity.json. UsageError where the folder is not empty or the label has no network.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name another folder with --out")
    chosen = choose_network(database, registered, label, resolution=resolution, device=device)
    # safetensors writes contiguous tensors only.
    predictor = load_network(chosen.checkpoint, chosen.hyperparameters, device=torch.device("cpu"))
    network = predictor.network.to(memory_format=torch.contiguous_format)
    test_uses = count_test_uses(database, registered.identity.whole_split_sha256)
    description = describe_network(registered, chosen, network, test_uses=test_uses)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _WEIGHTS).write_bytes(save(dict(network.state_dict()), metadata={"format": "pt"}))
        if not is_own_function(chosen.hyperparameters.architecture):
            (out / _CONFIG).write_text(json.dumps(_timm_config(chosen, network), indent=2) + "\n", encoding="utf-8")
        (out / _DESCRIPTION).write_text(json.dumps(description, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (out / _CARD).write_text(_card(chosen, description, read_demographics(registered)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; name another folder with --out") from None
    return description


def _timm_config(chosen: ChosenNetwork, network: torch.nn.Module) -> dict[str, Any]:
    """The configuration that timm reads. It has img_size for a network with a fixed input size."""
    hyperparameters = chosen.hyperparameters
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every network
    mean, std = normalisation(network)
    name, own_arguments = timm_arguments(hyperparameters.architecture)
    arguments: dict[str, Any] = {"in_chans": 1, "num_classes": 1} | own_arguments
    if "img_size" not in arguments and config.get("fixed_input_size"):
        arguments["img_size"] = hyperparameters.side
    return {
        "architecture": name.partition(".")[0],
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


def _card(chosen: ChosenNetwork, description: dict[str, Any], cohort: Demographics | None) -> str:
    of_label = None if cohort is None else next(each for each in cohort.labels if each.label == chosen.label)
    side = chosen.hyperparameters.side
    architecture = chosen.hyperparameters.architecture
    own = architecture.split(":") if is_own_function(architecture) else None
    return render(
        "model_card.md.jinja",
        **description,
        cohort=cohort,
        of_label=of_label,
        side=side,
        own=own,
        train=chosen.hyperparameters.train,
        timm_name=architecture.partition("?")[0].partition(".")[0],
    )
