"""Claim: at 64 px Acuity searches at least 5 times as fast as a user's script; it is slower at no resolution.

The script uses Optuna, timm and a torch Dataset that opens each file with Pillow, resizes it with torchvision v2 and
passes it through a DataLoader with 2 workers. Acuity and the script run the same trials (Acuity's first ones; the
script gets them by enqueue_trial), images, split, epochs, network, batch and threads. Each is a separate command, so
Acuity's time includes the start of Python, the embedded Postgres and the cache build. The images are nih-cxr-1024
(ACUITY_NIH_DIR) as 1024 px PNG. One epoch of the script with torchxrayvision's NIH_Dataset is timed too. Times are wall
times, and CPU times since other programs may share the cores.

Starvation is measured too: images/s of Acuity's training loop over the cache, divided by images/s of the same loop on
one batch in memory. The goal is at least 0.95 at 64, 128, 224 and 320 px, on one thread, by CPU time.

Arguments: trials (default 10), then resolutions.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from child_process import PYTHON, last_json, private_environment, time_command
from folders import NIH, scratch_folder
from result_line import make_goal, print_result

EPOCHS = 3
BATCH = 32
ARCHITECTURE = "test_resnet"
LABEL = "Pneumonia"
FED = (64, 128, 224, 320)
ROUNDS = 12
SOURCE = NIH / "nih-cxr-1024"
EXPERIMENT = """\
name = "pipeline-{side}"
labels = ["{label}"]
[data]
index = "index.csv"
images = "images"
split = "split.csv"
cache = "cache-{side}"
[search]
resolutions = [{side}]
architectures = ["{architecture}"]
trials = {trials}
min_complete_per_resolution = {trials}
batch = {batch}
pruner = "none"
[training]
epochs = {epochs}
augment = false
"""


def main() -> None:
    """Race each resolution, measure starvation, print the tables and one line of JSON."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    sides = [int(side) for side in sys.argv[2:]] or [64, 128, 224]
    goals, races = [], {}
    with scratch_folder("acuity-pipeline-") as folder:
        _write_set(folder)
        for side in sides:
            races[side] = race = _race(folder, side, trials)
            goals.append(_speedup(race, side, trials))
            print(_row(goals[-1]), {name: round(run["seconds"], 1) for name, run in race.items()}, flush=True)
        for side in FED:
            goals.append(_starvation(folder, side))
            print(_row(goals[-1]), flush=True)
    packages = ("torch", "torchvision", "timm", "optuna", "pillow", "opencv-python-headless", "torchxrayvision")
    print_result(
        "pipeline",
        n=trials,
        goals=goals,
        versions={name: version(name) for name in packages},
        network=f"{ARCHITECTURE}, batch {BATCH}, {EPOCHS} epochs a trial",
        races=races,
    )


def _write_set(folder: Path) -> None:
    """Write the radiographs as PNG, their index, and the split that Acuity and the script read."""
    from acuity.objectives.index.image_index import read_index
    from acuity.objectives.split.split import read_or_make_split

    (folder / "images").mkdir()
    files = sorted((SOURCE / "images").iterdir())
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.starmap(_write_png, [(file, folder / "images" / f"{file.stem}.png") for file in files])
    index = (SOURCE / "Data_Entry.csv").read_text().replace(".jpg", ".png")
    (folder / "index.csv").write_text(index)
    read_or_make_split(read_index(folder / "index.csv", images=folder / "images"), path=folder / "split.csv")


def _write_png(source: Path, path: Path) -> None:
    from PIL import Image

    Image.open(source).save(path, compress_level=4)  # decodes as fast as level 6 and is written in a third of the time


def _race(folder: Path, side: int, trials: int) -> dict[str, dict[str, Any]]:
    """Seconds of each command and of its trials: Acuity, the script, one epoch of the script with torchxrayvision."""
    (folder / f"{side}.toml").write_text(
        EXPERIMENT.format(side=side, label=LABEL, architecture=ARCHITECTURE, trials=trials, batch=BATCH, epochs=EPOCHS)
    )
    runs = {
        "acuity": _time(folder, "--acuity", str(folder), str(side)),
        "script": _time(folder, "--script", str(folder), str(side), "pillow", str(trials), str(EPOCHS)),
        "torchxrayvision": _time(folder, "--script", str(folder), str(side), "xrv", "1", "1"),
    }
    assert all(abs(a - b) < 1e-9 for a, b in zip(runs["acuity"]["rates"], runs["script"]["rates"], strict=True))
    assert runs["acuity"]["images"] == runs["script"]["images"] == runs["torchxrayvision"]["images"]
    return runs


def _time(folder: Path, *arguments: str) -> dict[str, Any]:
    run = time_command([*PYTHON, __file__, *arguments], environment=private_environment(folder))
    return last_json(run.stdout) | {"seconds": round(run.seconds, 2), "cpu_s": round(run.cpu_s, 2)}


def _acuity(folder: Path, side: int) -> None:
    """Run `acuity launch` with one worker and print its trials."""
    from rich.console import Console

    from acuity.storage.database import open_storage
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import labelled_images, open_image_set
    from acuity.study.fleet.placement import FleetOptions
    from acuity.study.launch import launch

    experiment = load(folder / f"{side}.toml")
    with open_storage(None) as database:
        launch(database, experiment, FleetOptions(workers=1, device="cpu"), console=Console(stderr=True))
        import optuna

        study = optuna.load_study(study_name=f"{experiment.name}/{LABEL}", storage=database.storage)
        trials = sorted(study.get_trials(), key=lambda trial: trial.number)
    data = labelled_images(open_image_set(experiment), label=LABEL, resolution=side)
    _print_trials(trials, images=len(data.training) + len(data.validation))


def _print_trials(trials: list[Any], *, images: int) -> None:
    seconds = [(trial.datetime_complete - trial.datetime_start).total_seconds() for trial in trials]
    rates = [trial.params["learning_rate"] for trial in trials]
    values = [round(trial.value, 4) for trial in trials]
    print(json.dumps({"trial_seconds": seconds, "rates": rates, "aucs": values, "images": images}))


def _script(folder: Path, side: int, dataset: str, trials: int, epochs: int) -> None:
    """Run the script that a user would write and print its trials."""
    import optuna
    import pandas as pd
    import timm
    import torch
    from PIL import Image
    from sklearn.metrics import roc_auc_score
    from torch.utils.data import DataLoader, Dataset, Subset
    from torchvision.transforms import v2

    class Radiographs(Dataset):  # type: ignore[type-arg]
        def __init__(self, table: pd.DataFrame) -> None:
            self.files = [folder / "images" / name for name in table["Image Index"]]
            self.labels = table["Finding Labels"].str.contains(LABEL).to_numpy("float32")
            self.transform = v2.Compose(
                [
                    v2.Resize((side, side), antialias=True),
                    v2.PILToTensor(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize([0.5], [0.25]),
                ]
            )

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, float]:
            with Image.open(self.files[i]) as image:
                return self.transform(image.convert("L")), self.labels[i]

    class FromTorchxrayvision(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            import torchxrayvision as xrv

            views, resize = ["PA", "AP"], xrv.datasets.XRayResizer(side)
            self.inner = xrv.datasets.NIH_Dataset(
                str(folder / "images"), str(folder / "index.csv"), views=views, transform=resize, unique_patients=False
            )

        def __len__(self) -> int:
            return len(self.inner)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, float]:
            sample = self.inner[i]
            return torch.from_numpy(sample["img"]) / 512, sample["lab"][self.inner.pathologies.index(LABEL)]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    split = pd.read_csv(folder / "split.csv", skiprows=1, dtype=str).set_index("patient")["part"]
    if dataset == "xrv":
        everything: Any = FromTorchxrayvision()
        table = everything.inner.csv
    else:
        table = pd.read_csv(folder / "index.csv", index_col=False)
        everything = Radiographs(table)
    parts = table["Patient ID"].astype(str).map(split)
    training, validation = (
        Subset(everything, [i for i, name in enumerate(parts) if name == part]) for part in ("training", "validation")
    )

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True) * (BATCH / 128) ** 0.5
        trial.suggest_categorical("resolution", [side])
        trial.suggest_categorical("architecture", [ARCHITECTURE])
        torch.manual_seed(trial.number)
        network = timm.create_model(ARCHITECTURE, in_chans=1, num_classes=1)
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05)
        batches = DataLoader(training, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
        held_out = DataLoader(validation, 256, num_workers=2, persistent_workers=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * len(batches))
        loss_of = torch.nn.BCEWithLogitsLoss()
        for epoch in range(epochs):
            network.train()
            for images, labels in batches:
                loss = loss_of(network(images).flatten(), labels.float())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            network.eval()
            with torch.inference_mode():
                scored = [(network(images).flatten(), labels) for images, labels in held_out]
            scores, labels = (torch.cat(column) for column in zip(*scored, strict=True))
            auc = float(roc_auc_score(labels, scores))
            trial.report(auc, epoch)
        return auc

    from acuity.study.config.loading import load
    from acuity.study.search.recipes import own_recipes

    study = optuna.create_study(direction="maximize")
    experiment = load(folder / f"{side}.toml")
    # An experiment of one label and one resolution runs its recipes in this order.
    for recipe in own_recipes(experiment, (0, 0), LABEL)[:trials]:
        study.enqueue_trial(recipe.at(side))
    study.optimize(objective, n_trials=trials)
    _print_trials(study.get_trials(), images=len(training) + len(validation))


def _speedup(race: dict[str, dict[str, Any]], side: int, trials: int) -> dict[str, Any]:
    """The script's time over Acuity's.

    low and high assume that every trial of the script took as long as its fastest, or its slowest.
    """
    ours, script = race["acuity"]["seconds"], race["script"]
    outside = script["seconds"] - sum(script["trial_seconds"])
    one = race["torchxrayvision"]
    of_xrv = one["seconds"] + (trials * EPOCHS - 1) * one["trial_seconds"][0]
    a_trial = sum(race["acuity"]["trial_seconds"]) / trials
    ten = outside + 10 * sum(script["trial_seconds"]) / trials, ours + (10 - trials) * a_trial
    least = 5 if side == 64 else 1
    goal = make_goal(
        f"speedup_{side}px",
        script["seconds"] / ours,
        f">= {least}",
        met=script["seconds"] / ours >= least,
        low=(outside + trials * min(script["trial_seconds"])) / ours,
        high=(outside + trials * max(script["trial_seconds"])) / ours,
        digits=2,
    )
    return goal | {
        "at_ten_trials": round(ten[0] / ten[1], 2),
        "against_torchxrayvision": round(of_xrv / ours, 2),
        "of_cpu_time": round(script["cpu_s"] / race["acuity"]["cpu_s"], 2),
    }


def _starvation(folder: Path, side: int) -> dict[str, Any]:
    """Time the training loop over the cache and on one batch in memory, in turn, a few dozen steps each."""
    import numpy as np
    import torch

    from acuity.objectives.images.cache import build_cache
    from acuity.objectives.index.image_index import read_index
    from acuity.objectives.training.interface import Hyperparameters
    from acuity.objectives.training.learner import make_learner, train_batches
    from acuity.objectives.training.loader import open_loaders

    index = read_index(folder / "index.csv", images=folder / "images")
    pixels = build_cache(index, folder=folder / f"cache-{side}", resolutions=[side]).open(side)
    cpu = torch.device("cpu")
    task = Hyperparameters(ARCHITECTURE, resolution=side, batch_size=BATCH, learning_rate=1e-3, epochs=1, augment=False)
    learner = make_learner(task, total_steps=100_000, device=cpu)
    rows = np.arange(len(pixels))
    (from_cache,) = open_loaders(pixels, rows, device=cpu)
    (batch,) = from_cache([torch.arange(BATCH)])
    targets = torch.from_numpy((rows % 2).astype(np.float32))
    torch.set_num_threads(1)
    steps = max(3, int(24 * (64 / side) ** 2))
    rates: dict[str, list[float]] = {"cache": [], "resident": []}
    for round_ in range(ROUNDS + 1):
        for name, feed in (("cache", from_cache), ("resident", lambda batches: (batch for _ in batches))):
            batches = torch.randint(len(rows), (steps, BATCH)).sort(dim=1).values
            began = time.process_time()
            for _ in train_batches(
                learner, feed, targets=targets, batches=batches, augmentation=None, positive_weight=1.0
            ):
                pass
            if round_:
                rates[name].append(steps * BATCH / (time.process_time() - began))
    ratios = [ours / resident for ours, resident in zip(rates["cache"], rates["resident"], strict=True)]
    value = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4)
    goal = make_goal(f"fed_{side}px", value, ">= 0.95", met=value >= 0.95, low=quartiles[0], high=quartiles[2])
    return goal | {"images_per_second": round(statistics.median(rates["cache"]))}


def _row(goal: dict[str, Any]) -> str:
    return f"{goal['name']:16} {goal['value']:6.3f} ({goal['low']:.3f} to {goal['high']:.3f})  goal {goal['goal']}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--acuity"]:
        _acuity(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--script"]:
        _script(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        main()
