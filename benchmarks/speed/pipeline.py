"""Claim: at 64 px Acuity searches at least 5 times as fast as the script a user writes, and nowhere slower.

The script: Optuna, timm and a torch Dataset that opens each file with Pillow, resizes it with torchvision v2 and hands
it over through a DataLoader with 2 workers. Both run the same trials (Acuity's first ones; the script has them by
enqueue_trial), images, split, epochs, network, batch and threads, each as a command of its own: start of Python,
embedded Postgres and cache build are Acuity's to pay. Images: nih-cxr-1024 (ACUITY_NIH_DIR) written back as 1024 px
PNG. Also the script with torchxrayvision's NIH_Dataset in place of its own, of which one epoch is timed. Wall time; as
other programs share the cores, CPU time too.

And starvation: images/s of Acuity's training loop over the cache, divided by those of the same loop on one batch that
is already in memory; at least 0.95 at 64, 128, 224 and 320 px. On one thread, by its CPU time.
Arguments: trials (default 10), then resolutions.
"""

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

EPOCHS = 3
BATCH = 32
ARCHITECTURE = "test_resnet"
LABEL = "Pneumonia"
FED = (64, 128, 224, 320)
ROUNDS = 12
SOURCE = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-cxr-1024"
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
    with tempfile.TemporaryDirectory(prefix="acuity-pipeline-", dir=os.environ.get("ACUITY_BENCH_DIR")) as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # root's server runs under another account
        _write_set(folder)
        for side in sides:
            races[side] = race = _race(folder, side, trials)
            goals.append(_speedup(race, side, trials))
            print(_told(goals[-1]), {name: round(run["seconds"], 1) for name, run in race.items()}, flush=True)
        for side in FED:
            goals.append(_starvation(folder, side))
            print(_told(goals[-1]), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    packages = ("torch", "torchvision", "timm", "optuna", "pillow", "opencv-python-headless", "torchxrayvision")
    result = {
        "benchmark": "pipeline",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, shared with other programs",
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in packages},
        "n": trials,
        "network": f"{ARCHITECTURE}, batch {BATCH}, {EPOCHS} epochs a trial",
        "races": races,
        "goals": goals,
    }
    print(json.dumps(result))


def _write_set(folder: Path) -> None:
    """The real radiographs as PNG, their index, and the split that both sides read."""
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

    Image.open(source).save(path, compress_level=4)  # decodes like level 6, in a third of the time to write


def _race(folder: Path, side: int, trials: int) -> dict[str, dict[str, Any]]:
    """Seconds of the command and of its trials: Acuity, the script, one epoch of it with torchxrayvision."""
    (folder / f"{side}.toml").write_text(
        EXPERIMENT.format(side=side, label=LABEL, architecture=ARCHITECTURE, trials=trials, batch=BATCH, epochs=EPOCHS)
    )
    runs = {
        "acuity": _timed([sys.executable, "-P", __file__, "--acuity", str(folder), str(side)], folder),
        "script": _timed(
            [sys.executable, "-P", __file__, "--script", str(folder), str(side), "pillow", str(trials), str(EPOCHS)],
            folder,
        ),
        "torchxrayvision": _timed(
            [sys.executable, "-P", __file__, "--script", str(folder), str(side), "xrv", "1", "1"], folder
        ),
    }
    assert all(abs(a - b) < 1e-9 for a, b in zip(runs["acuity"]["rates"], runs["script"]["rates"], strict=True))
    assert runs["acuity"]["images"] == runs["script"]["images"] == runs["torchxrayvision"]["images"]
    return runs


def _timed(command: list[str], folder: Path) -> dict[str, Any]:
    environment = os.environ | {"ACUITY_EMBEDDED_DIR": str(folder / "server"), "PYTHONPATH": str(Path.cwd())}
    environment.pop("ACUITY_STORAGE", None)
    before = os.times()
    began = time.perf_counter()
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - began
    after = os.times()
    if said.returncode:
        sys.exit(f"{' '.join(command)}\n{said.stdout}\n{said.stderr}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    told: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return told | {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2)}


def _acuity(folder: Path, side: int) -> None:
    """What `acuity launch` does, with one worker, then what its trials were."""
    from rich.console import Console

    from acuity.storage.database import open_storage
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import labelled_images, open_image_set
    from acuity.study.fleet.supervisor import FleetOptions
    from acuity.study.launch import launch

    experiment = load(folder / f"{side}.toml")
    with open_storage(None) as database:
        launch(database, experiment, FleetOptions(workers=1, device="cpu"), console=Console(stderr=True))
        import optuna

        study = optuna.load_study(study_name=f"{experiment.name}/{LABEL}", storage=database.storage)
        trials = sorted(study.get_trials(), key=lambda trial: trial.number)
    data = labelled_images(open_image_set(experiment), label=LABEL, resolution=side)
    _tell(trials, images=len(data.training) + len(data.validation))


def _tell(trials: list[Any], *, images: int) -> None:
    seconds = [(trial.datetime_complete - trial.datetime_start).total_seconds() for trial in trials]
    rates = [trial.params["learning_rate"] for trial in trials]
    values = [round(trial.value, 4) for trial in trials]
    print(json.dumps({"trial_seconds": seconds, "rates": rates, "aucs": values, "images": images}))


def _script(folder: Path, side: int, dataset: str, trials: int, epochs: int) -> None:
    """The script that a user would write."""
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
    for recipe in own_recipes(experiment, (0, 0), LABEL)[:trials]:  # of one label at one resolution, in this order
        study.enqueue_trial(recipe.at(side))
    study.optimize(objective, n_trials=trials)
    _tell(study.get_trials(), images=len(training) + len(validation))


def _speedup(race: dict[str, dict[str, Any]], side: int, trials: int) -> dict[str, Any]:
    """The script's time over Acuity's; low and high as if each of its trials took as little, or as much, as any."""
    ours, script = race["acuity"]["seconds"], race["script"]
    outside = script["seconds"] - sum(script["trial_seconds"])
    one = race["torchxrayvision"]
    of_xrv = one["seconds"] + (trials * EPOCHS - 1) * one["trial_seconds"][0]
    a_trial = sum(race["acuity"]["trial_seconds"]) / trials
    ten = outside + 10 * sum(script["trial_seconds"]) / trials, ours + (10 - trials) * a_trial
    return {
        "name": f"speedup_{side}px",
        "value": round(script["seconds"] / ours, 2),
        "low": round((outside + trials * min(script["trial_seconds"])) / ours, 2),
        "high": round((outside + trials * max(script["trial_seconds"])) / ours, 2),
        "goal": ">= 5" if side == 64 else ">= 1",
        "met": script["seconds"] / ours >= (5 if side == 64 else 1),
        "at_ten_trials": round(ten[0] / ten[1], 2),
        "against_torchxrayvision": round(of_xrv / ours, 2),
        "of_cpu_time": round(script["cpu_s"] / race["acuity"]["cpu_s"], 2),
    }


def _starvation(folder: Path, side: int) -> dict[str, Any]:
    """The training loop over the cache and on one batch in memory, in turn, a few dozen steps each."""
    import numpy as np
    import torch

    from acuity.objectives.images.cache import build_cache
    from acuity.objectives.index.image_index import read_index
    from acuity.objectives.training.interface import Hyperparameters
    from acuity.objectives.training.learner import make_learner, train_batches
    from acuity.objectives.training.loader import open_feeds

    index = read_index(folder / "index.csv", images=folder / "images")
    pixels = build_cache(index, folder=folder / f"cache-{side}", resolutions=[side]).open(side)
    cpu = torch.device("cpu")
    task = Hyperparameters(ARCHITECTURE, resolution=side, batch_size=BATCH, learning_rate=1e-3, epochs=1, augment=False)
    learner = make_learner(task, total_steps=100_000, device=cpu)
    rows = np.arange(len(pixels))
    (from_cache,) = open_feeds(pixels, rows, device=cpu)
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
    return {
        "name": f"fed_{side}px",
        "value": round(value, 3),
        "low": round(quartiles[0], 3),
        "high": round(quartiles[2], 3),
        "goal": ">= 0.95",
        "met": value >= 0.95,
        "images_per_second": round(statistics.median(rates["cache"])),
    }


def _told(goal: dict[str, Any]) -> str:
    return f"{goal['name']:16} {goal['value']:6.3f} ({goal['low']:.3f} to {goal['high']:.3f})  goal {goal['goal']}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--acuity"]:
        _acuity(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--script"]:
        _script(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        main()
