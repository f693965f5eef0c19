"""The two searches that live_search.py compares. Each runs as a command and prints its trials as JSON."""

import json
import multiprocessing
import os
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

RESOLUTIONS = (32, 48, 64, 96, 128)
ARCHITECTURES = ("test_resnet", "test_efficientnet")
RATES = (3e-4, 3e-2)
EXPONENTS = (3, 6)
EPOCHS, WORKERS = 8, 2


@dataclass(frozen=True)
class Configuration:
    """The hyperparameters of a trial."""

    label: str
    resolution: int
    architecture: str
    batch_size: int
    learning_rate: float


def acuity(folder: Path) -> list[dict[str, Any]]:
    """Run `acuity launch`; returns its complete trials."""
    import optuna
    from rich.console import Console

    from acuity.storage.database import open_storage
    from acuity.study.config.loading import load
    from acuity.study.fleet.placement import FleetOptions
    from acuity.study.launch import launch

    began = datetime.now()
    experiment = load(folder / "live.toml")
    with open_storage(None) as database:
        launch(database, experiment, FleetOptions(workers=WORKERS, device="cpu"), console=Console(stderr=True))
        studies = {
            label: optuna.load_study(study_name=f"{experiment.name}/{label}", storage=database.storage)
            for label in experiment.labels
        }
        return [row for label, study in studies.items() for row in _ended(label, study, began)]


def _ended(label: str, study: Any, began: datetime) -> list[dict[str, Any]]:
    from optuna.trial import TrialState

    rows = []
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        configuration = Configuration(
            label,
            trial.params["resolution"],
            trial.params["architecture"],
            trial.user_attrs["batch_size"],
            trial.params["learning_rate"],
        )
        seconds = (trial.datetime_complete - began).total_seconds()
        rows.append({"configuration": asdict(configuration), "auc": trial.value, "seconds": seconds})
    return rows


def plain_optuna(folder: Path, seconds: str) -> list[dict[str, Any]]:
    """Run a user's script: two processes, each of which takes the label with the fewest trials next.

    No trial starts after this many seconds. Trials that end later are left out.
    """
    from acuity.study.config.loading import load

    began = datetime.now()
    limit = timedelta(seconds=float(seconds))
    experiment = load(folder / "live.toml")
    workers = [
        multiprocessing.get_context("spawn").Process(target=_optimize, args=(folder, worker, began + limit))
        for worker in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("a process of the script failed")
    rows = [row for label in experiment.labels for row in _ended(label, _study(folder, label, seed=None), began)]
    return [row for row in rows if row["seconds"] <= limit.total_seconds()]


def _study(folder: Path, label: str, *, seed: int | None) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return optuna.create_study(
        study_name=label,
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )


def _optimize(folder: Path, worker: int, until: datetime) -> None:
    import optuna
    import torch

    from acuity.objectives.training.interface import Diverged, Hyperparameters
    from acuity.objectives.training.train import train
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import labelled_images, open_image_set

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORKERS))  # as Acuity's workers do
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    experiment = load(folder / "live.toml")
    image_set = open_image_set(experiment)
    seed = experiment.search.seed + worker
    studies = {
        label: _study(folder, label, seed=seed + WORKERS * position) for position, label in enumerate(experiment.labels)
    }

    def objective(trial: optuna.Trial, label: str) -> float:
        hyperparameters = Hyperparameters(
            resolution=trial.suggest_categorical("resolution", RESOLUTIONS),
            architecture=trial.suggest_categorical("architecture", ARCHITECTURES),
            learning_rate=trial.suggest_float("learning_rate", *RATES, log=True),
            batch_size=2 ** trial.suggest_int("batch_size_exponent", *EXPONENTS),
            epochs=EPOCHS,
            augment=False,
        )
        trial.set_user_attr("batch_size", hyperparameters.batch_size)

        def report(epoch: int, auc: float) -> bool:
            trial.report(auc, epoch)
            return epoch < EPOCHS and trial.should_prune()

        data = labelled_images(image_set, label=label, resolution=hyperparameters.resolution)
        try:
            outcome = train(hyperparameters, data, seed=trial.number, device=torch.device("cpu"), report=report)
        except Diverged as diverged:
            raise optuna.TrialPruned from diverged
        if outcome.stopped:
            raise optuna.TrialPruned
        return outcome.auc

    while datetime.now() < until:
        counts = {label: len(study.get_trials(deepcopy=False)) for label, study in studies.items()}
        label = min(counts, key=counts.__getitem__)
        studies[label].optimize(lambda trial, label=label: objective(trial, label), n_trials=1)


if __name__ == "__main__":
    print(json.dumps({"acuity": acuity, "optuna": plain_optuna}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
