"""Records real learning curves for benchmarks/search/search.py, which replays searches on them. It makes no claim.

A row is one training: validation AUC and CPU seconds of each epoch, and the AUC on patients that no search sees. There
are five image sets: four of phantoms with different seeds and sizes ("design", "validation" and "previous" for the
design of strategies, "report" for the result), and nih-cxr-128 (ACUITY_NIH_DIR). The full grid of resolution x
architecture x batch size x learning rate x 2 seeds is run in one random order, labels in turn. A third of the cells
run both seeds early, so that an interrupted run has a balanced fraction. Recorded trainings are not run again.

    python benchmarks/search/record_curves.py [--minutes 75] [--processes 2] [--sets design] [--top]

--top trains 4 fresh seeds of the best cell of each label and resolution instead. They check the attainable AUCs.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from acuity.objectives.index.image_index import read_index
from acuity.objectives.phantoms.generator import LABELS as PHANTOM_LABELS
from acuity.objectives.phantoms.generator import draw_phantoms
from acuity.objectives.split.split import read_or_make_split
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.metrics import auc
from acuity.objectives.training.interface import Diverged, Hyperparameters, LabelledImages
from acuity.objectives.training.prediction import score_images
from acuity.objectives.training.train import train

sys.path.append(str(Path(__file__).parents[1]))
from folders import NIH

CURVES = Path(os.environ.get("ACUITY_CURVES", Path(__file__).with_name("curves") / "curves.parquet"))
RESOLUTIONS = (32, 48, 64, 96, 128)
ARCHITECTURES = ("test_resnet", "test_efficientnet")
BATCH_SIZES = (8, 16, 32, 64)
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1)
EPOCHS = 8
TOP_CELLS, TOP_SEEDS = 1, (2, 3, 4, 5)
_CPU = torch.device("cpu")
_WRITE_EVERY = 20


@dataclass(frozen=True)
class ImageSetSize:
    """Number of images of each part. Test images are those of patients that no search sees."""

    seed: int
    training: int
    validation: int
    test: int


IMAGE_SETS = {
    "design": ImageSetSize(seed=11, training=700, validation=300, test=2000),
    "validation": ImageSetSize(seed=23, training=1000, validation=400, test=2000),
    "previous": ImageSetSize(seed=37, training=800, validation=400, test=2000),
    "report": ImageSetSize(seed=53, training=900, validation=400, test=2000),
    "nih": ImageSetSize(seed=0, training=1000, validation=500, test=1000),
}
LABELS = {
    "design": PHANTOM_LABELS,
    "validation": PHANTOM_LABELS,
    "previous": PHANTOM_LABELS,
    "report": PHANTOM_LABELS,
    "nih": ("Effusion", "Infiltration", "Atelectasis"),
}


@dataclass(frozen=True)
class Run:
    """One training of the grid."""

    image_set: str
    label: str
    resolution: int
    architecture: str
    batch_size: int
    learning_rate: float
    seed: int


def main() -> None:
    """Train until the time is over; the file is rewritten every few trainings."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sets", nargs="+", choices=list(IMAGE_SETS), default=list(IMAGE_SETS))
    parser.add_argument("--top", action="store_true")
    asked = parser.parse_args()
    rows = pd.read_parquet(CURVES).to_dict("records") if CURVES.exists() else []
    done = {Run(**{name: row[name] for name in Run.__dataclass_fields__}) for row in rows}
    wanted = _top(pd.DataFrame(rows)) if asked.top else _grid()
    runs = [run for run in wanted if run not in done and run.image_set in asked.sets]
    until = time.time() + 60 * asked.minutes
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        for count, row in enumerate(pool.imap_unordered(_record, [(run, until) for run in runs]), start=1):
            if row is None:
                continue
            rows.append(row)
            if count % _WRITE_EVERY == 0:
                _write(rows)
                print(f"{len(rows):,} curves, {len(runs) - count:,} to go", file=sys.stderr, flush=True)
    _write(rows)
    print(pd.DataFrame(rows).groupby(["image_set", "label"]).size().to_string())


def _grid() -> list[Run]:
    """Every cell of every label in one random order, labels in turn; every third cell has its second seed early."""
    cells = list(itertools.product(RESOLUTIONS, ARCHITECTURES, BATCH_SIZES, LEARNING_RATES))
    random.Random(0).shuffle(cells)
    first, second = SEEDS
    early = [(*cell, seed) for i, cell in enumerate(cells) for seed in ((first, second) if i % 3 == 0 else (first,))]
    late = [(*cell, second) for i, cell in enumerate(cells) if i % 3]
    labels = [(image_set, label) for image_set, of_set in LABELS.items() for label in of_set]
    return [Run(*label, *cell) for cell in early + late for label in labels]


def _top(rows: pd.DataFrame) -> list[Run]:
    """Fresh seeds of the best cells, so that the choice of the cells does not bias their AUC."""
    cell = ["image_set", "label", "resolution", "architecture", "batch_size", "learning_rate"]
    searched = rows[rows["seed"].isin(SEEDS)]
    means = searched.groupby(cell, as_index=False)["test_auc"].mean().sort_values("test_auc", ascending=False)
    best = means.groupby(["image_set", "label", "resolution"]).head(TOP_CELLS)
    return [Run(*values, seed) for seed in TOP_SEEDS for values in best[cell].itertuples(index=False)]


def _write(rows: list[dict[str, Any]]) -> None:
    CURVES.parent.mkdir(exist_ok=True)
    draft = CURVES.with_suffix(".part")
    pd.DataFrame(rows).to_parquet(draft, index=False)
    draft.replace(CURVES)


def _record(task: tuple[Run, float]) -> dict[str, Any] | None:
    run, until = task
    if time.time() > until:
        return None
    torch.set_num_threads(1)
    data, test = _images(run.image_set, run.label, run.resolution)
    hyperparameters = Hyperparameters(
        run.architecture, run.resolution, run.batch_size, run.learning_rate, epochs=EPOCHS, augment=False
    )
    aucs, seconds, kept = [], [time.process_time()], [b""]

    def report(_: int, area: float) -> bool:
        aucs.append(area)
        seconds.append(time.process_time())
        return False

    area = error = test_area = test_error = float("nan")
    try:
        outcome = train(
            hyperparameters,
            data,
            seed=run.seed,
            device=_CPU,
            report=report,
            save_checkpoint=lambda checkpoint: kept.__setitem__(0, checkpoint),
        )
    except Diverged:
        pass  # the curve ends before the last epoch
    else:
        area, error = outcome.auc, outcome.auc_se
        scores = score_images(kept[0], hyperparameters, data.images, test, device=_CPU)
        known = data.targets[test]
        test_area, test_error = auc(known, scores), auc_standard_error(known, scores, data.patients[test])
    return {
        **vars(run),
        "epoch_aucs": aucs,
        "epoch_seconds": np.diff(seconds).tolist(),
        "auc": area,
        "auc_se": error,
        "test_auc": test_area,
        "test_se": test_error,
    }


def _images(image_set: str, label: str, resolution: int) -> tuple[LabelledImages, np.ndarray]:
    """The images of one label at one resolution, and the rows of the test patients."""
    _, targets, patients, parts = _draw(image_set)
    training, validation, test = np.split(np.arange(len(parts)), np.searchsorted(parts, [1, 2]))  # parts ascend
    pixels = _pixels(image_set, resolution)
    return LabelledImages(pixels, targets[label], patients, training=training, validation=validation), test


@cache
def _pixels(image_set: str, resolution: int) -> np.ndarray:
    largest = _draw(image_set)[0]
    size = (resolution, resolution)
    if largest.shape[1:] == size:
        return largest
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in largest])


_Set = tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]
"""Pixels at 128 px, targets by label, patients, part (0 training, 1 validation, 2 test; ascending) of each image."""


@cache
def _draw(image_set: str) -> _Set:
    cv2.setNumThreads(1)
    return _nih() if image_set == "nih" else _phantoms(image_set)


def _phantoms(image_set: str) -> _Set:
    size = IMAGE_SETS[image_set]
    wanted = (size.training, size.validation, size.test)
    # Each part has its own seed, so that no patient is in two parts.
    drawn = [list(draw_phantoms(images, seed=1000 * size.seed + part)) for part, images in enumerate(wanted)]
    films = [film for films in drawn for film in films]
    targets = {
        label: np.array([label in film.findings for film in films], dtype=np.float32) for label in PHANTOM_LABELS
    }
    parts = np.repeat(np.arange(3), wanted)
    patients = np.array([film.patient for film in films], dtype=np.int64) + 10**6 * parts
    return np.stack([film.pixels for film in films]), targets, patients, parts


def _nih() -> _Set:
    folder = NIH / "nih-cxr-128"
    index = read_index(folder / "Data_Entry.csv", images=folder / "images")
    split = read_or_make_split(index, path=Path("no-split.csv"), write=False)
    size = IMAGE_SETS["nih"]
    rows = [
        np.sort(np.random.default_rng(part).permutation(split.rows(name))[:wanted])
        for part, (name, wanted) in enumerate(
            (("training", size.training), ("validation", size.validation), ("test", size.test))
        )
    ]
    every = np.concatenate(rows)
    files = index.table["file"].iloc[every]
    pixels = np.stack([cv2.imread(str(folder / "images" / file), cv2.IMREAD_GRAYSCALE) for file in files])
    targets = {label: index.target(label)[every] for label in LABELS["nih"]}
    patients = index.table["patient"].factorize()[0][every].astype(np.int64)
    return pixels, targets, patients, np.repeat(np.arange(3), [len(part) for part in rows])


if __name__ == "__main__":
    main()
