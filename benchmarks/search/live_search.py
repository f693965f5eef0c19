"""A check of what the replays of `benchmarks/search/search.py` show, with real trainings and workers.

The same experiment twice on this machine, one after the other, each with two workers: `acuity launch` as a user runs
it, and plain Optuna as a user writes it (a study a label in one journal file, TPE and median pruner by default, two
processes), which calls our training loop on our image cache, so that a trial costs both the same. Same space; Optuna
goes on for as long as ours has taken. One run a seed, images and searches anew.
Then every trial that was its label's and resolution's best on validation patients at some time is trained anew with two
other seeds and scored on patients of whom neither search knew.

Told for phantoms (three labels at once) and for one label of nih-cxr-128 (ACUITY_NIH_DIR), over wall-clock time: the
mean true AUC of the labels' best trials, and the share of right verdicts. A verdict is the smallest resolution that is
not MARGIN below the reference, all smaller ones tried; right is what the replays' recorded trainings say.
"After two retrainings" is the best resolution's trial by the validation AUCs of the trainings anew, not by its own.

    python benchmarks/search/live_search.py [phantoms|nih] [--trials 24] [--seeds 41 42 43]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live_contestants
import numpy as np
import pandas as pd
from live_contestants import ARCHITECTURES, EPOCHS, EXPONENTS, RATES, RESOLUTIONS, Configuration
from live_truth import Truth, train_anew

from acuity.objectives.phantoms.generator import write_phantoms

MARGIN = 0.02
STEP_S = 30
CONTESTANTS = ("acuity", "optuna")
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
    """A run a seed: both searches, then the truth of what they found; a table and one line of JSON, after every run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image_set", nargs="?", choices=list(LABELS), default="phantoms")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    asked = parser.parse_args()
    runs = []
    for seed in asked.seeds:
        runs.append(_search_twice(asked.image_set, trials=asked.trials, seed=seed))
        print(json.dumps(_result(asked, runs)), flush=True)


def _search_twice(image_set: str, *, trials: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="acuity-live-", dir=os.environ.get("ACUITY_BENCH_DIR")) as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # root's server runs under another account
        _write(folder, image_set, trials=trials, seed=seed)
        _decode(folder)
        ours = _run(folder, "acuity")
        found = {"acuity": ours, "optuna": _run(folder, "optuna", str(_seconds(ours)))}
        truth = train_anew(folder, {each.configuration for ended in found.values() for each in _leaders(ended)})
    return {"seed": seed} | _judge(image_set, found, truth)


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
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import open_image_set

    open_image_set(load(folder / "live.toml"))


def _run(folder: Path, contestant: str, *limit: str) -> list[Ended]:
    environment = {key: value for key, value in os.environ.items() if key != "ACUITY_STORAGE"}
    environment |= {"ACUITY_EMBEDDED_DIR": str(folder / "server"), "XDG_CACHE_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, live_contestants.__file__, contestant, str(folder), *limit]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{contestant}: {done.stdout}{done.stderr}")
    rows = json.loads(done.stdout.splitlines()[-1])
    ended = [Ended(Configuration(**row.pop("configuration")), **row) for row in rows]
    print(f"{contestant}: {len(ended)} complete trials in {_seconds(ended):.0f} s", flush=True)
    return ended


def _seconds(ended: list[Ended]) -> float:
    return max(each.seconds for each in ended)


def _leaders(ended: list[Ended]) -> list[Ended]:
    """Every trial that was its label's and resolution's best when it ended, in time's order."""
    best: dict[tuple[str, int], float] = {}
    leaders = []
    for each in sorted(ended, key=lambda each: each.seconds):
        cell = (each.configuration.label, each.configuration.resolution)
        if each.auc > best.get(cell, 0.0):
            best[cell] = each.auc
            leaders.append(each)
    return leaders


def _judge(image_set: str, found: dict[str, list[Ended]], truth: dict[Configuration, Truth]) -> dict[str, Any]:
    """What each search had over time, and what at its end."""
    labels = LABELS[image_set]
    times = list(range(STEP_S, int(_seconds(found["acuity"])) + STEP_S + 1, STEP_S))  # the last after both have ended
    right = {label: _right(image_set, label) for label in labels}
    judged: dict[str, Any] = {"seconds": times, "right": right}
    for name in CONTESTANTS:
        answers = [
            [_answer([each for each in found[name] if each.seconds <= time], label, truth) for label in labels]
            for time in times
        ]
        judged[name] = {
            "complete_trials": len(found[name]),
            "seconds": round(_seconds(found[name])),
            "mean_true_auc_of_best": [_mean(answer["auc"] for answer in at) for at in answers],
            "right_verdicts": [
                _mean(answer["verdict"] in right[label] for label, answer in zip(labels, at, strict=True))
                for at in answers
            ],
            "after_two_retrainings": _mean(answer["retrained_auc"] for answer in answers[-1]),
            "at_the_end": dict(zip(labels, answers[-1], strict=True)),
        }
    return judged


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)


def _right(image_set: str, label: str) -> list[int]:
    """Verdicts that the recorded trainings leave open, of as many images and fresh seeds; usually one."""
    file = {"phantoms": "search_report.json", "nih": "search_nih.json"}[image_set]
    recorded = json.loads((Path(__file__).parents[1] / "results" / file).read_text(encoding="utf-8"))
    verdicts: list[int] = recorded["truth"][label]["verdicts"]
    return verdicts


def _answer(ended: list[Ended], label: str, truth: dict[Configuration, Truth]) -> dict[str, Any]:
    """What a search says of a label after these trials; chance and no verdict where there are none."""
    finalists = {
        each.configuration.resolution: each for each in _leaders(ended) if each.configuration.label == label
    }  # a resolution's last leader is its best
    if not finalists:
        return {"auc": 0.5, "retrained_auc": 0.5, "verdict": None, "reference": None, "true_auc": {}}
    true = {resolution: truth[finalist.configuration] for resolution, finalist in sorted(finalists.items())}
    reference = max(finalists, key=lambda resolution: finalists[resolution].auc)
    retrained = max(true, key=lambda resolution: true[resolution].validation_auc)
    named = min(at for at, its in true.items() if its.auc >= true[reference].auc - MARGIN)
    return {
        "auc": round(true[reference].auc, 4),
        "retrained_auc": round(true[retrained].auc, 4),
        # That a smaller one is worse is known only where it was tried.
        "verdict": named if all(below in true for below in RESOLUTIONS if below < named) else None,
        "reference": reference,
        "true_auc": {resolution: round(its.auc, 4) for resolution, its in true.items()},
    }


def _result(asked: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    longest = max((run["seconds"] for run in runs), key=len)
    kinds = ("mean_true_auc_of_best", "right_verdicts")
    over_time = {
        kind: {name: _over_time([run[name][kind] for run in runs], len(longest)) for name in CONTESTANTS}
        for kind in kinds
    }
    for kind, rows in over_time.items():
        print(kind, pd.DataFrame(rows, index=pd.Index(longest, name="seconds")).T.to_string(), sep="\n")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "benchmark": "live_search",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "image_set": asked.image_set,
        "trials_per_label": asked.trials,
        "n": len(runs),
        "seconds": longest,
        **over_time,
        "after_two_retrainings": {
            name: _mean(run[name]["after_two_retrainings"] for run in runs) for name in CONTESTANTS
        },
        "runs": runs,
    }


def _over_time(rows: list[list[float]], length: int) -> list[float]:
    """Mean over runs; a search that has ended keeps what it said last."""
    return [_mean(row[min(at, len(row) - 1)] for row in rows) for at in range(length)]


if __name__ == "__main__":
    main()
