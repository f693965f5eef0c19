"""Checks the replays of `benchmarks/search/search.py` with real trainings and workers.

The same experiment runs twice on this machine, one after the other, each with two workers: `acuity launch`, and a
user's script with plain Optuna (one study per label in one journal file, the default TPE and median pruner, two
processes). The script calls Acuity's training loop on Acuity's image cache, so that a trial costs the same. The space
is the same, and Optuna runs for as long as Acuity took. Every seed has new images and new searches. Afterwards every
trial that was at some time the best of its label and resolution by validation AUC is retrained with two other seeds and
scored on patients that neither search sees.

Reported over wall-clock time, for phantoms (three labels together) and for one label of nih-cxr-128 (ACUITY_NIH_DIR):
the mean true AUC of the labels' best trials, and the share of right verdicts. A verdict is the smallest resolution that
is not MARGIN below the reference, with all smaller ones tried. It is right if the replays' recorded trainings allow it.
"After two retrainings" chooses the best resolution's trial by the validation AUCs of the retrainings.

    python benchmarks/search/live_search.py [phantoms|nih] [--trials 24] [--seeds 41 42 43]
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live_contestants
import numpy as np
import pandas as pd
from live_contestants import ARCHITECTURES, EPOCHS, EXPONENTS, RATES, RESOLUTIONS, Configuration
from live_truth import Truth, retrain

from acuity.objectives.phantoms.generator import write_phantoms

sys.path.append(str(Path(__file__).parents[1]))
from child_process import PYTHON, last_json, private_environment, time_command
from folders import NIH, scratch_folder
from result_line import print_result

MARGIN = 0.02
STEP_S = 30
CONTESTANTS = ("acuity", "optuna")
LABELS = {"phantoms": ("Cardiomegaly", "Nodule", "Fibrosis"), "nih": ("Effusion",)}
SEARCHED, UNSEEN = {"phantoms": 1250, "nih": 1800}, 2000
"""Number of images of the experiment (64 % for training), and of images of other patients for the true AUC."""
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
    """From the start of the search's command to the end of the trial."""


def main() -> None:
    """Run both searches for each seed, then retrain; print the tables and one line of JSON after every run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image_set", nargs="?", choices=list(LABELS), default="phantoms")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    asked = parser.parse_args()
    runs = []
    for seed in asked.seeds:
        runs.append(_search_twice(asked.image_set, trials=asked.trials, seed=seed))
        _print_runs(asked, runs)


def _search_twice(image_set: str, *, trials: int, seed: int) -> dict[str, Any]:
    with scratch_folder("acuity-live-") as folder:
        _write(folder, image_set, trials=trials, seed=seed)
        _decode(folder)
        ours = _run(folder, "acuity")
        found = {"acuity": ours, "optuna": _run(folder, "optuna", str(_seconds(ours)))}
        truth = retrain(folder, {each.configuration for ended in found.values() for each in _leaders(ended)})
    return {"seed": seed} | _judge(image_set, found, truth)


def _write(folder: Path, image_set: str, *, trials: int, seed: int) -> None:
    """Write the searched and the unseen image set, which share no patient, and the experiment file."""
    if image_set == "phantoms":
        images = "searched/images"
        write_phantoms(folder / "searched", images=SEARCHED[image_set], seed=seed)
        write_phantoms(folder / "unseen", images=UNSEEN, seed=seed + 10_000)
    else:
        source = NIH / "nih-cxr-128"
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
    """Cut the index in two, patients in random order: first the searched images, then the unseen ones."""
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
    """Write the split and the cache that both searches read."""
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import open_image_set

    open_image_set(load(folder / "live.toml"))


def _run(folder: Path, contestant: str, *limit: str) -> list[Ended]:
    command = [*PYTHON, live_contestants.__file__, contestant, str(folder), *limit]
    rows = last_json(time_command(command, environment=private_environment(folder)).stdout)
    ended = [Ended(Configuration(**row.pop("configuration")), **row) for row in rows]
    print(f"{contestant}: {len(ended)} complete trials in {_seconds(ended):.0f} s", flush=True)
    return ended


def _seconds(ended: list[Ended]) -> float:
    return max(each.seconds for each in ended)


def _leaders(ended: list[Ended]) -> list[Ended]:
    """Every trial that was the best of its label and resolution when it ended, in the order of their ends."""
    best: dict[tuple[str, int], float] = {}
    leaders = []
    for each in sorted(ended, key=lambda each: each.seconds):
        cell = (each.configuration.label, each.configuration.resolution)
        if each.auc > best.get(cell, 0.0):
            best[cell] = each.auc
            leaders.append(each)
    return leaders


def _judge(image_set: str, found: dict[str, list[Ended]], truth: dict[Configuration, Truth]) -> dict[str, Any]:
    """The answers of each search over time and at its end."""
    labels = LABELS[image_set]
    times = list(range(STEP_S, int(_seconds(found["acuity"])) + STEP_S + 1, STEP_S))  # at the last both have ended
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
    """Verdicts that the recorded trainings allow; usually one."""
    file = {"phantoms": "search_report.json", "nih": "search_nih.json"}[image_set]
    recorded = json.loads((Path(__file__).parents[1] / "results" / file).read_text(encoding="utf-8"))
    verdicts: list[int] = recorded["truth"][label]["verdicts"]
    return verdicts


def _answer(ended: list[Ended], label: str, truth: dict[Configuration, Truth]) -> dict[str, Any]:
    """The search's answer for a label after these trials; AUC 0.5 and no verdict if there are none."""
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
        # A smaller resolution is known to be worse only if it was tried.
        "verdict": named if all(below in true for below in RESOLUTIONS if below < named) else None,
        "reference": reference,
        "true_auc": {resolution: round(its.auc, 4) for resolution, its in true.items()},
    }


def _print_runs(asked: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    longest = max((run["seconds"] for run in runs), key=len)
    kinds = ("mean_true_auc_of_best", "right_verdicts")
    over_time = {
        kind: {name: _over_time([run[name][kind] for run in runs], len(longest)) for name in CONTESTANTS}
        for kind in kinds
    }
    for kind, rows in over_time.items():
        print(kind, pd.DataFrame(rows, index=pd.Index(longest, name="seconds")).T.to_string(), sep="\n")
    print_result(
        "live_search",
        n=len(runs),
        goals=[],
        date=time.strftime("%Y-%m-%d"),
        image_set=asked.image_set,
        trials_per_label=asked.trials,
        seconds=longest,
        **over_time,
        after_two_retrainings={name: _mean(run[name]["after_two_retrainings"] for run in runs) for name in CONTESTANTS},
        runs=runs,
    )


def _over_time(rows: list[list[float]], length: int) -> list[float]:
    """Mean over runs. A search that has ended keeps its last answer."""
    return [_mean(row[min(at, len(row) - 1)] for row in rows) for at in range(length)]


if __name__ == "__main__":
    main()
