"""The experiment's networks, checked before anything trains: known, buildable at every resolution, weights at hand."""

import hashlib
import itertools
import json
from importlib.metadata import version
from pathlib import Path

from study.config_schema import Experiment


def check_networks(experiment: Experiment) -> None:
    """InputError where an architecture is unknown, takes no images of a resolution, or has no weights to be had.

    Pretrained weights are fetched, once, into the hub's own cache: compute nodes are often offline.
    """
    from objectives.network import check_architecture, check_input_size, make_network

    training = experiment.training
    sides = _input_sizes(experiment)
    for architecture in experiment.search.architectures:
        check_architecture(architecture)
        if training.pretrained or training.weights:
            make_network(architecture, input_size=sides[0], pretrained=training.pretrained, weights=training.weights)
    for architecture, side in itertools.product(experiment.search.architectures, sides):
        check_input_size(architecture, side)


def check_networks_once(experiment: Experiment, folder: Path) -> None:
    """The same, remembered by a file in folder: importing torch alone takes longer than looking there."""
    known = folder / f"networks-{_digest(experiment)}.checked"
    if known.exists():
        return
    check_networks(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    known.touch()


def _input_sizes(experiment: Experiment) -> list[int]:
    enlarged = experiment.training.network_input
    return [enlarged] if enlarged else sorted(experiment.search.resolutions)


def _digest(experiment: Experiment) -> str:
    training = experiment.training
    weights = training.weights and [str(training.weights), training.weights.exists()]
    asked = [experiment.search.architectures, _input_sizes(experiment), training.pretrained, weights]
    return hashlib.sha256(json.dumps([*asked, version("timm"), version("torch")]).encode()).hexdigest()[:16]
