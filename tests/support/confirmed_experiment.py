"""A tiny experiment for tests of reports, exports and dashboards: its search is made up, its confirmation is real."""

import io
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from acuity.objectives.device.device import Device
from acuity.storage.database import Database, open_storage
from acuity.study import confirm as confirm_module
from acuity.study.config.loading import parse
from acuity.study.config.paths import resolve_paths
from acuity.study.confirm import confirm
from acuity.study.dataset.image_set import ImageSet, open_image_set, training_images
from acuity.study.fleet.placement import FleetOptions
from acuity.study.registry.claims import open_studies
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, checkpoints_of
from acuity.study.registry.register import register
from acuity.study.search.space import BELOW_THE_MEDIAN
from acuity.study.worker.context import WorkerContext
from acuity.study.worker.heartbeat import DatabaseContact
from acuity.study.worker.loop import run_trials
from support.threads import one_thread

EXPERIMENT = """
name = "tiny"
labels = ["Cardiomegaly", "Nodule"]
[data]
index = "{index}"
images = "{images}"
split = "tiny.split.csv"
cache = "cache"
[search]
resolutions = [16, 32, 64]
architectures = ["test_resnet", "test_efficientnet"]
trials = 24
min_complete_per_resolution = 2
min_batch_size = 4
min_updates_per_epoch = 5
learning_rate = [1e-3, 3e-2]
[training]
epochs = 2
[confirm]
resolutions = [16, 32]
folds = 3
margin = 0.05
"""
_ARCHITECTURES = ("test_resnet", "test_efficientnet")


def make_confirmed(url: str, folder: Path, phantoms: Path) -> Registered:
    """Register the experiment, fill its search and confirm it, in the database at the URL."""
    with one_thread(), open_storage(url) as database, pytest.MonkeyPatch.context() as patch:
        registered = make_searched(database, folder, phantoms)
        patch.setattr(confirm_module, "run_fleet", work_here)
        console = Console(file=io.StringIO())
        confirm(database, registered, FleetOptions(workers=1, device="cpu"), seeds=None, console=console)
    return registered


def make_searched(database: Database, folder: Path, phantoms: Path) -> Registered:
    """Register the experiment and fill its search."""
    table = EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images")
    registered, _ = register_experiment(database, tomllib.loads(table), folder)
    for number, label in enumerate(registered.experiment.labels):
        fill_search(database, registered, label, seed=number)
    return registered


def register_experiment(database: Database, table: dict[str, Any], folder: Path) -> tuple[Registered, ImageSet]:
    """Register the experiment of the parsed file, whose paths are relative to the folder, and open its images."""
    experiment = resolve_paths(parse(table, source="test"), folder)
    image_set = open_image_set(experiment)
    training = training_images(image_set, experiment.labels)
    return register(database, experiment, image_set.identity, training_images=training), image_set


def repeat_search(database: Database, registered: Registered) -> Registered:
    """Register the experiment of another database in this one and fill its search."""
    repeated = register(database, registered.experiment, registered.identity, training_images=150)
    for label in repeated.experiment.labels:
        fill_search(database, repeated, label, seed=0)
    return repeated


def fill_search(database: Database, registered: Registered, label: str, *, seed: int) -> None:
    """Add finished trials of every resolution and network, some of them pruned. Their AUC grows with resolution."""
    search = registered.experiment.search
    study = optuna.load_study(storage=database.storage, study_name=study_name(registered.experiment.name, label))
    for waiting in study.get_trials(states=(TrialState.WAITING,)):
        database.storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
    generator = np.random.default_rng(seed)
    for number in range(search.trials):
        resolution = search.resolutions[number % len(search.resolutions)]
        architecture = _ARCHITECTURES[number // len(search.resolutions) % 2]
        exponent = int(generator.integers(2, registered.exponents[1] + 1))
        feasible = max(2, min(30, 2048 // resolution))
        auc = 0.6 + 0.06 * np.log2(resolution / 16) + 0.02 * generator.standard_normal()
        pruned = number >= 12 and auc < 0.66
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=None if pruned else float(auc),
                params={
                    "resolution": resolution,
                    "architecture": architecture,
                    "learning_rate": float(np.exp(generator.uniform(np.log(1e-3), np.log(3e-2)))),
                    "batch_size_exponent": exponent,
                },
                distributions={
                    "resolution": CategoricalDistribution(search.resolutions),
                    "architecture": CategoricalDistribution(search.architectures),
                    "learning_rate": FloatDistribution(*search.learning_rate, log=True),
                    "batch_size_exponent": IntDistribution(*registered.exponents),
                },
                intermediate_values={1: float(auc) - 0.05} if pruned else {1: float(auc) - 0.05, 2: float(auc)},
                user_attrs={
                    "batch_size": min(1 << exponent, feasible),
                    "feasible_batch_size": feasible,
                    "batch_cap": "memory" if resolution > 32 else "min_updates_per_epoch",
                    "seconds": float(resolution**2 / 500 * (1 + (architecture != "test_resnet"))),
                    "images_per_second": 1e6 / resolution**2,
                    "auc_se": 0.05,
                    "seed": number,
                    "epochs": 1 if pruned else 2,
                    "device": "CPU",
                }
                | ({"reason": BELOW_THE_MEDIAN} if pruned else {}),
            )
        )


def work_here(database: Database, registered: Registered, **_: Any) -> None:
    """Run the waiting trials with one worker in this process, in place of a fleet."""
    run_trials(make_context(database, registered, stop=threading.Event()))


def make_context(database: Database, registered: Registered, *, stop: threading.Event) -> WorkerContext:
    """The context of a worker in this process."""
    return WorkerContext(
        database=database,
        registered=registered,
        studies=open_studies(database, registered, sampler_seed=0),
        image_set=open_image_set(registered.experiment),
        device=Device(torch.device("cpu"), "CPU", threads=1, memory_budget_bytes=2**30),
        checkpoints=checkpoints_of(registered),
        contact=DatabaseContact(longest_gap_s=90),
        stop=stop,
    )
