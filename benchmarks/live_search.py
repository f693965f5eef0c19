"""A spot check, one run a command: what the replays of `benchmarks/search.py` show, with real trainings and workers.

The same experiment twice on this machine, in turn, each with two workers: `acuity launch` as a user runs it, and plain
Optuna as a user writes it (a study a label in one journal file, TPE and median pruner by default, two processes), which
calls our training loop on our image cache, so that a trial costs both the same. Same space, same number of trials.
Then every configuration that was a label's best on validation patients at some time, and the best of each resolution at
the end, are trained anew with two other seeds and scored on patients of whom neither search knew.

Told for phantoms (three labels at once) and for one label of nih-cxr-128 (ACUITY_NIH_DIR): mean true AUC of the best
trial over wall-clock time, and the smallest resolution that is not MARGIN below the reference, which is the best on
validation patients.

    python benchmarks/live_search.py [phantoms|nih] [--trials 24] [--seed 31] [--optuna-first]
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import live_contestants
import numpy as np
import pandas as pd
from live_contestants import ARCHITECTURES, EPOCHS, EXPONENTS, RATES, RESOLUTIONS, WORKERS, Configuration

from objectives.phantom import write_phantoms

MARGIN = 0.02
SEEDS = (101, 102)
LABELS = {"phantoms": ("Cardiomegaly", "Nodule", "Fibrosis"), "nih": ("Effusion",)}
SEARCHED, UNSEEN = {"phantoms": 1250, "nih": 1800}, 2000
"""Images of the experiment (64 % of them for training), and images of other patients that judge what it found."""
EXPERIMENT = """\
name = "live"
labels = {labels}
[data]
index = "searched/Data_Entry.csv"
images = "{images}"
split = "searched/split.csv"
cache = "cache"
[search]
resolutions = {resolutions}
architectures = {architectures}
trials = {trials}
learning_rate = {rates}
min_batch_size = {smallest_batch}
max_batch_size = {largest_batch}
min_updates_per_epoch = 10
seed = {seed}
[training]
epochs = {epochs}
augment = false
"""


@dataclass(frozen=True)
class Ended:
    """A complete trial."""

    configuration: Configuration
    auc: float
    """On validation patients."""
    seconds: float
    """From the beginning of its search's command to its end."""


def main() -> None:
    """Both searches, then the truth of what they found; a table and one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image_set", nargs="?", choices=list(LABELS), default="phantoms")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--optuna-first", action="store_true")
    asked = parser.parse_args()
    order = ("optuna", "acuity") if asked.optuna_first else ("acuity", "optuna")
    with tempfile.TemporaryDirectory(prefix="acuity-live-", dir=os.environ.get("ACUITY_BENCH_DIR")) as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # root's server runs under another account
        _write(folder, asked.image_set, trials=asked.trials, seed=asked.seed)
        _decode(folder)
        found = {contestant: _run(folder, contestant) for contestant in order}
        truth = _train_anew(folder, found)
    print(json.dumps(_result(asked, order, found, truth)))


def _write(folder: Path, image_set: str, *, trials: int, seed: int) -> None:
    """Two image sets without a common patient, the searched one and the unseen one, and the experiment's file."""
    if image_set == "phantoms":
        images = "searched/images"
        write_phantoms(folder / "searched", images=SEARCHED[image_set], seed=seed)
        write_phantoms(folder / "unseen", images=UNSEEN, seed=seed + 10_000)
    else:
        source = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")).resolve() / "nih-cxr-128"
        images = str(source / "images")
        _cut_in_two(source / "Data_Entry.csv", folder, searched=SEARCHED[image_set], seed=seed)
    (folder / "live.toml").write_text(
        EXPERIMENT.format(
            labels=json.dumps(LABELS[image_set]),
            images=images,
            resolutions=list(RESOLUTIONS),
            architectures=json.dumps(ARCHITECTURES),
            trials=trials,
            rates=list(RATES),
            smallest_batch=2 ** EXPONENTS[0],
            largest_batch=2 ** EXPONENTS[1],
            seed=seed,
            epochs=EPOCHS,
        )
    )


def _cut_in_two(index: Path, folder: Path, *, searched: int, seed: int) -> None:
    """Patients in random order, until there are enough images for the search; then for what judges it."""
    lines = index.read_text(encoding="utf-8").splitlines()
    patients = [line.split(",")[3] for line in lines[1:]]
    order = np.random.default_rng(seed).permutation(sorted(set(patients)))
    place = {patient: position for position, patient in enumerate(order)}
    rows = sorted(range(len(patients)), key=lambda row: place[patients[row]])
    parts = {"searched": rows[:searched], "unseen": rows[searched : searched + UNSEEN]}
    shared = {patients[row] for row in parts["searched"]} & {patients[row] for row in parts["unseen"]}
    for name, of_part in parts.items():
        kept = [lines[1 + row] for row in of_part if name == "searched" or patients[row] not in shared]
        (folder / name).mkdir()
        (folder / name / "Data_Entry.csv").write_text("\n".join([lines[0], *kept]) + "\n", encoding="utf-8")


def _decode(folder: Path) -> None:
    """Index, split and cache, which both searches read."""
    from study.experiment import load
    from study.image_set import open_image_set

    open_image_set(load(folder / "live.toml"))


def _run(folder: Path, contestant: str) -> list[Ended]:
    environment = {key: value for key, value in os.environ.items() if key != "ACUITY_STORAGE"}
    environment |= {"ACUITY_EMBEDDED_DIR": str(folder / "server"), "XDG_CACHE_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, live_contestants.__file__, contestant, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{contestant}: {done.stdout}{done.stderr}")
    rows = json.loads(done.stdout.splitlines()[-1])
    ended = [Ended(Configuration(**row.pop("configuration")), **row) for row in rows]
    print(f"{contestant}: {len(ended)} complete trials in {max(each.seconds for each in ended):.0f} s", flush=True)
    return ended


def _train_anew(folder: Path, found: dict[str, list[Ended]]) -> dict[Configuration, float]:
    """Mean AUC on unseen patients over SEEDS, of all that may be an answer."""
    wanted = {each.configuration for ended in found.values() for each in (*_leaders(ended), *_finalists(ended))}
    tasks = [(folder, configuration, seed) for configuration in sorted(wanted, key=str) for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        aucs = pool.starmap(_true_auc, tasks, chunksize=1)
    table = pd.DataFrame({"configuration": [task[1] for task in tasks], "auc": aucs})
    return {configuration: rows["auc"].mean() for configuration, rows in table.groupby("configuration", sort=False)}


def _leaders(ended: list[Ended]) -> list[Ended]:
    """Every trial that was its label's best when it ended, in time's order."""
    best: dict[str, float] = {}
    leaders = []
    for each in sorted(ended, key=lambda each: each.seconds):
        if each.auc > best.get(each.configuration.label, 0.0):
            best[each.configuration.label] = each.auc
            leaders.append(each)
    return leaders


def _finalists(ended: list[Ended]) -> list[Ended]:
    """The best of each resolution for each label."""
    best: dict[tuple[str, int], Ended] = {}
    for each in ended:
        cell = (each.configuration.label, each.configuration.resolution)
        if cell not in best or each.auc > best[cell].auc:
            best[cell] = each
    return list(best.values())


def _true_auc(folder: Path, configuration: Configuration, seed: int) -> float:
    import torch

    from objectives.metrics import auc
    from objectives.prediction import score_images
    from objectives.task import Diverged, Hyperparameters
    from objectives.training import train
    from study.experiment import load
    from study.image_set import labelled_images, open_image_set

    torch.set_num_threads(1)
    data = labelled_images(
        open_image_set(load(folder / "live.toml")), label=configuration.label, resolution=configuration.resolution
    )
    kept = [b""]
    settings = asdict(configuration)
    settings.pop("label")
    hyperparameters = Hyperparameters(**settings, epochs=EPOCHS, augment=False)
    try:
        train(
            hyperparameters,
            data,
            seed=seed,
            device=torch.device("cpu"),
            report=lambda *_: False,
            save_checkpoint=lambda checkpoint: kept.__setitem__(0, checkpoint),
        )
    except Diverged:
        return 0.5
    pixels, targets = _unseen(folder, configuration.label, configuration.resolution)
    rows = np.arange(len(targets))
    return float(auc(targets, score_images(kept[0], hyperparameters, pixels, rows, device=torch.device("cpu"))))


@cache
def _unseen(folder: Path, label: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    from objectives.index import read_index
    from study.experiment import load

    here = folder / "unseen" / "images"
    images = here if here.exists() else load(folder / "live.toml").data.images
    index = read_index(folder / "unseen" / "Data_Entry.csv", images=images)
    pixels = [cv2.imread(str(images / file), cv2.IMREAD_GRAYSCALE) for file in index.table["file"]]
    size = (resolution, resolution)
    resized = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in pixels]
    return np.stack(resized), index.target(label)


def _result(
    asked: argparse.Namespace,
    order: tuple[str, ...],
    found: dict[str, list[Ended]],
    truth: dict[Configuration, float],
) -> dict[str, Any]:
    last = max(each.seconds for ended in found.values() for each in ended)
    times = [round(last * part / 8) for part in range(1, 9)]
    labels = LABELS[asked.image_set]
    curves = {name: [round(_at(ended, labels, truth, time), 4) for time in times] for name, ended in found.items()}
    named = {name: {label: _named(ended, label, truth) for label in labels} for name, ended in found.items()}
    print(pd.DataFrame(curves, index=pd.Index(times, name="seconds")).T.to_string())
    print(json.dumps(named, indent=1))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "benchmark": "live_search",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "image_set": asked.image_set,
        "seed": asked.seed,
        "trials_per_label": asked.trials,
        "order": order,
        "seconds_in_all": {name: round(max(each.seconds for each in ended)) for name, ended in found.items()},
        "seconds": times,
        "mean_true_auc_of_best": curves,
        "by_resolution": named,
    }


def _at(ended: list[Ended], labels: tuple[str, ...], truth: dict[Configuration, float], seconds: float) -> float:
    """Mean over labels of the true AUC of the best trial until then; chance where there is none."""
    aucs = dict.fromkeys(labels, 0.5)
    for each in _leaders(ended):
        if each.seconds <= seconds:
            aucs[each.configuration.label] = truth[each.configuration]
    return float(np.mean(list(aucs.values())))


def _named(ended: list[Ended], label: str, truth: dict[Configuration, float]) -> dict[str, Any]:
    """True AUC of each resolution's best trial, and the smallest that is not MARGIN below the reference."""
    finalists = [each for each in _finalists(ended) if each.configuration.label == label]
    aucs = {each.configuration.resolution: round(truth[each.configuration], 4) for each in finalists}
    reference = max(finalists, key=lambda each: each.auc).configuration.resolution
    named = min(resolution for resolution, auc in aucs.items() if auc >= aucs[reference] - MARGIN)
    return {"named": named, "reference": reference, "true_auc": dict(sorted(aucs.items()))}


if __name__ == "__main__":
    main()
