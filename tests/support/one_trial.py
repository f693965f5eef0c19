"""A worker in this process that runs one trial of the tiny experiment."""

import threading
import tomllib
from pathlib import Path
from typing import Any

from acuity.storage.database import Database
from acuity.study.config.loading import parse
from acuity.study.config.paths import resolve_paths
from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import open_image_set, training_images
from acuity.study.registry.claims import claim_trial
from acuity.study.registry.register import register
from acuity.study.worker.attempt import run_attempt
from acuity.study.worker.context import WorkerContext
from support.confirmed_experiment import EXPERIMENT, make_context


def tiny_experiment(
    phantoms: Path,
    folder: Path,
    *,
    architecture: str | None = None,
    training: str = "",
    search: str = "",
    rest: str = "",
) -> Experiment:
    """architecture: the only one. training, search: more lines of these sections. rest: more sections."""
    toml = EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images")
    if architecture is not None:
        toml = toml.replace('["test_resnet", "test_efficientnet"]', f'["{architecture}"]')
    toml = toml.replace("[training]", f"{search}\n[training]\n{training}")
    return resolve_paths(parse(tomllib.loads(toml + rest), source="test"), folder)


def registered_context(database: Database, experiment: Experiment) -> WorkerContext:
    """Register the experiment; returns the context of a worker in this process."""
    image_set = open_image_set(experiment)
    images = training_images(image_set, experiment.labels)
    registered = register(database, experiment, image_set.identity, training_images=images)
    return make_context(database, registered, stop=threading.Event())


def run_one(context: WorkerContext) -> Any:
    """Claim a trial and run one attempt at it; returns the trial in the storage."""
    claim = claim_trial(context.database, context.registered, context.studies, can_hold=lambda *_: True)
    assert claim is not None
    run_attempt(context, claim)
    return context.database.storage.get_trial(claim.trial_id)
