"""Claim: search and confirmation name the resolution that phantoms need, and hardly ever one that is too small.

For each of several sets of phantoms of other seeds: `acuity launch`, `acuity confirm`, `acuity best`, by real workers;
the verdict of each label is held against `objectives/phantom_truth.py`. Of 20 sets a too small resolution may be named
in at most 1, and the needed one must be in at least 16, for every label. The margin is 0.05 AUC: the about 100 positive
test patients of a set of 3,000 cannot show 0.02, and what phantoms need is the same at both.

    python benchmarks/validity/confirmation.py [--sets 20] [--images 3000] [--resolutions 32 64 128] [--first-seed 1000]
                                      [--labels Fibrosis]

Labels that need more than the largest of the resolutions are left out. On two idle cores a set takes about 10 minutes,
at 32 and 64 px alone about 2.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.objectives.phantoms.truth import TRUTH

_MARGIN = 0.05
_EXPERIMENT = """\
name = "phantoms"
labels = [{labels}]
[data]
index = "Data_Entry.csv"
images = "images"
split = "Data_Entry.split.csv"
cache = "cache"
[search]
resolutions = [{resolutions}]
architectures = ["test_resnet"]
trials = {trials}
min_complete_per_resolution = 2
learning_rate = [5e-3, 2e-2]
min_batch_size = 16
max_batch_size = 32
[training]
epochs = 6
augment = false
[confirm]
margin = {margin}
seeds = 3
"""


def main() -> None:
    """Run the sets, print a row each and the counts as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--labels", nargs="+", choices=list(TRUTH), default=list(TRUTH))
    asked = parser.parse_args()
    labels = [label for label in asked.labels if TRUTH[label].smallest_adequate <= max(asked.resolutions)]
    outcomes: dict[str, Counter[str]] = {label: Counter() for label in labels}
    seconds = []
    for seed in range(asked.first_seed, asked.first_seed + asked.sets):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="acuity-confirmation-") as folder:
            Path(folder).chmod(0o711)
            answer = _run_set(Path(folder), labels, asked.resolutions, images=asked.images, seed=seed)
        seconds.append(time.perf_counter() - began)
        cells = []
        for entry in answer["labels"]:
            verdict = entry["smallest_adequate"]
            outcomes[entry["label"]][_judge(entry["label"], verdict)] += 1
            named = f"{verdict['resolution']} px" if verdict["resolution"] else verdict["verdict"]
            aucs = ", ".join(f"{at['resolution']}: {at['auc']:.3f}" for at in entry["by_resolution"] if at["seeds"])
            cells.append(f"{entry['label']} {named} ({aucs})")
        print(f"set {seed}  {'; '.join(cells)}   ({seconds[-1]:.0f} s)", flush=True)
        # After every set: what was counted before a long run is cut short is not lost.
        print(json.dumps(_result(outcomes, seconds, asked)), flush=True)


def _run_set(folder: Path, labels: list[str], resolutions: list[int], *, images: int, seed: int) -> dict[str, Any]:
    write_phantoms(folder, images=images, seed=seed)
    file = folder / "experiment.toml"
    file.write_text(
        _EXPERIMENT.format(
            labels=", ".join(f'"{label}"' for label in labels),
            resolutions=", ".join(map(str, resolutions)),
            trials=2 * len(resolutions),
            margin=_MARGIN,
        )
    )
    environment = {key: value for key, value in os.environ.items() if key != "ACUITY_STORAGE"}
    environment |= {"ACUITY_EMBEDDED_DIR": str(folder / "server"), "XDG_CACHE_HOME": str(folder / "home")}

    def acuity(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "acuity", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"acuity {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    acuity("launch", str(file))
    acuity("confirm", "phantoms")
    answer: dict[str, Any] = json.loads(acuity("best", "phantoms", "--format", "json"))
    return answer


def _judge(label: str, verdict: dict[str, Any]) -> str:
    if verdict["resolution"] is None:
        return str(verdict["verdict"])
    needed = TRUTH[label].smallest_adequate
    return (
        "right" if verdict["resolution"] == needed else "too small" if verdict["resolution"] < needed else "too large"
    )


def _result(outcomes: dict[str, Counter[str]], seconds: list[float], asked: argparse.Namespace) -> dict[str, Any]:
    sets = len(seconds)
    goals = []
    for label, counts in outcomes.items():
        for name, value, goal, met in (
            ("right", counts["right"], 0.8 * sets, counts["right"] >= 0.8 * sets),
            ("too_small", counts["too small"], 0.05 * sets, counts["too small"] <= 0.05 * sets),
        ):
            sign = ">=" if name == "right" else "<="
            goals.append({"name": f"{name}_{label}", "value": value, "goal": f"{sign} {goal:g}", "met": met})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "benchmark": "confirmation",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "n": sets,
        "images": asked.images,
        "resolutions": asked.resolutions,
        "first_seed": asked.first_seed,
        "margin": _MARGIN,
        "seconds_per_set": round(sum(seconds) / sets),
        "outcomes": {label: dict(counts) for label, counts in outcomes.items()},
        "goals": goals,
    }


if __name__ == "__main__":
    main()
