"""True AUC of the trials of live_search.py: configurations are retrained and scored on unseen patients."""

import multiprocessing
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from live_contestants import EPOCHS, WORKERS, Configuration

SEEDS = (101, 102)


@dataclass(frozen=True)
class Truth:
    """Mean AUCs of a configuration over SEEDS."""

    validation_auc: float
    """On the search's validation patients, as in a confirmation."""
    auc: float
    """On patients that neither search sees."""


def retrain(folder: Path, configurations: Iterable[Configuration]) -> dict[Configuration, Truth]:
    """Train two networks of each configuration, in as many processes as a search has workers."""
    tasks = [(folder, configuration, seed) for configuration in sorted(configurations, key=str) for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        aucs = pool.starmap(_train, tasks, chunksize=1)
    table = pd.DataFrame(aucs, columns=["validation", "unseen"]).assign(configuration=[task[1] for task in tasks])
    return {
        configuration: Truth(rows["validation"].mean(), rows["unseen"].mean())
        for configuration, rows in table.groupby("configuration", sort=False)
    }


def _train(folder: Path, configuration: Configuration, seed: int) -> tuple[float, float]:
    """AUC on validation patients and on unseen patients; 0.5 if the training diverges."""
    import torch

    from acuity.objectives.statistics.metrics import auc
    from acuity.objectives.training.interface import Diverged, Hyperparameters
    from acuity.objectives.training.prediction import score_images
    from acuity.objectives.training.train import train
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import labelled_images, open_image_set

    torch.set_num_threads(1)
    data = labelled_images(
        open_image_set(load(folder / "live.toml")), label=configuration.label, resolution=configuration.resolution
    )
    kept = [b""]
    settings = asdict(configuration)
    settings.pop("label")
    hyperparameters = Hyperparameters(**settings, epochs=EPOCHS, augment=False)
    try:
        outcome = train(
            hyperparameters,
            data,
            seed=seed,
            device=torch.device("cpu"),
            report=lambda *_: False,
            save_checkpoint=lambda checkpoint: kept.__setitem__(0, checkpoint),
        )
    except Diverged:
        return 0.5, 0.5
    pixels, targets = _unseen(folder, configuration.label, configuration.resolution)
    scores = score_images(kept[0], hyperparameters, pixels, np.arange(len(targets)), device=torch.device("cpu"))
    return outcome.auc, float(auc(targets, scores))


@cache
def _unseen(folder: Path, label: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    from acuity.objectives.index.image_index import read_index
    from acuity.study.config.loading import load

    here = folder / "unseen" / "images"
    images = here if here.exists() else load(folder / "live.toml").data.images
    index = read_index(folder / "unseen" / "Data_Entry.csv", images=images)
    pixels = [cv2.imread(str(images / file), cv2.IMREAD_GRAYSCALE) for file in index.table["file"]]
    size = (resolution, resolution)
    resized = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in pixels]
    return np.stack(resized), index.target(label)
