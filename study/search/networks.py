"""Check that every network of a search space takes images of every resolution, and check the user's functions."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import platformdirs

from acuity.objectives.training.own_function import is_own_function
from acuity.study.config.schema import Experiment, Training


def check_networks(experiment: Experiment) -> None:
    """Raise InputError where an architecture is unknown, does not take a resolution, or its weights are not available.

    Also where a function of the user's is not here, raises, or returns a wrong shape or NaN. Downloads pretrained
    weights into the hub's cache, since compute nodes are often offline.
    """
    from acuity.objectives.training.network import check_architecture, check_input_size, make_network
    from acuity.objectives.training.own_step import check_augmentation, check_loss
    from acuity.objectives.training.own_training_check import CHECKED_BATCH, check_training
    from acuity.study.search.hyperparameters import make_hyperparameters

    training = experiment.training
    input_sizes = _input_sizes(experiment)
    for architecture in experiment.search.architectures:
        check_architecture(architecture)
        if training.pretrained or training.weights:
            make_network(
                architecture, input_size=input_sizes[0], pretrained=training.pretrained, weights=training.weights
            )
    for architecture, input_size in itertools.product(experiment.search.architectures, input_sizes):
        check_input_size(architecture, input_size)
    if training.loss is not None:
        check_loss(training.loss)
    if training.augmentation is not None:
        for resolution in experiment.search.resolutions:
            check_augmentation(training.augmentation, resolution)
    if training.train is not None:
        smallest = make_hyperparameters(
            experiment,
            architecture=experiment.search.architectures[0],
            resolution=min(experiment.search.resolutions),
            batch_size=CHECKED_BATCH,
            learning_rate=experiment.search.learning_rate[0],
        )
        check_training(smallest)


def own_functions(training: Training, architectures: Iterable[str]) -> list[str]:
    """Names "module:function" of the user's functions in trainings of these architectures."""
    named = [*architectures, training.augmentation, training.loss, training.train]
    return sorted({name for name in named if name is not None and is_own_function(name)})


def check_networks_once(experiment: Experiment) -> None:
    """`check_networks`, unless a file in the user's cache records that it passed. Importing torch alone takes longer.

    Nothing is recorded for networks with weights, whose files may be gone at the next call, nor for the user's
    functions.
    """
    training = experiment.training
    if training.pretrained or training.weights or own_functions(training, experiment.search.architectures):
        check_networks(experiment)
        return
    passed = Path(platformdirs.user_cache_dir("acuity")) / f"networks-{_digest(experiment)}.checked"
    if passed.exists():
        return
    check_networks(experiment)
    with contextlib.suppress(OSError):  # a cache that cannot be written only means that the check is repeated
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


def _input_sizes(experiment: Experiment) -> list[int]:
    enlarged = experiment.training.network_input
    return [enlarged] if enlarged else sorted(experiment.search.resolutions)


def _digest(experiment: Experiment) -> str:
    checked = [experiment.search.architectures, _input_sizes(experiment)]
    return hashlib.sha256(json.dumps([*checked, version("timm"), version("torch")]).encode()).hexdigest()[:16]
