"""Claim: search and confirmation name the smallest adequate resolution of phantoms, and rarely one that is too small.

For several sets of phantoms with different seeds, real workers run `acuity launch`, `acuity confirm` and `acuity best`.
The verdict of each label is compared with `objectives/phantoms/truth.py`. For every label, of 20 sets at most 1 may
name a resolution that is too small, and at least 16 must name the right one. The margin is 0.05 AUC, because the about
100 positive test patients of a set of 3,000 cannot show 0.02. The right resolution is the same for both margins.

    python benchmarks/validity/confirmation.py [--sets 20] [--images 3000] [--resolutions 32 64 128] [--first-seed 1000]
                                               [--labels Fibrosis]

Labels that need a resolution above the largest one are left out. On two idle cores a set takes about 10 minutes; with
32 and 64 px alone, about 2.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.objectives.phantoms.truth import TRUTH

sys.path.append(str(Path(__file__).parents[1]))
from child_process import private_environment, time_command
from folders import scratch_folder
from result_line import make_goal, print_result

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
"""


def main() -> None:
    """Run the sets. After every set print a row, and the counts so far as one line of JSON."""
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
        with scratch_folder("acuity-confirmation-") as folder:
            answer = _run_set(folder, labels, asked.resolutions, images=asked.images, seed=seed)
        seconds.append(time.perf_counter() - began)
        cells = []
        for entry in answer["labels"]:
            verdict = entry["smallest_adequate"]
            outcomes[entry["label"]][_judge(entry["label"], verdict)] += 1
            named = f"{verdict['resolution']} px" if verdict["resolution"] else verdict["verdict"]
            aucs = ", ".join(f"{at['resolution']}: {at['auc']:.3f}" for at in entry["by_resolution"] if at["seeds"])
            cells.append(f"{entry['label']} {named} ({aucs})")
        print(f"set {seed}  {'; '.join(cells)}   ({seconds[-1]:.0f} s)", flush=True)
        print_result(
            "confirmation",
            n=len(seconds),
            goals=_goals(outcomes, sets=len(seconds)),
            images=asked.images,
            resolutions=asked.resolutions,
            first_seed=asked.first_seed,
            margin=_MARGIN,
            seconds_per_set=round(sum(seconds) / len(seconds)),
            outcomes={label: dict(counts) for label, counts in outcomes.items()},
        )


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
    environment = private_environment(folder)

    def acuity(*arguments: str) -> str:
        return time_command([sys.executable, "-m", "acuity", *arguments], environment=environment).stdout

    acuity("launch", str(file))
    acuity("confirm", "phantoms", "--yes")
    answer: dict[str, Any] = json.loads(acuity("best", "phantoms", "--format", "json"))
    return answer


def _judge(label: str, verdict: dict[str, Any]) -> str:
    if verdict["resolution"] is None:
        return str(verdict["verdict"])
    needed = TRUTH[label].smallest_adequate
    return (
        "right" if verdict["resolution"] == needed else "too small" if verdict["resolution"] < needed else "too large"
    )


def _goals(outcomes: dict[str, Counter[str]], *, sets: int) -> list[dict[str, Any]]:
    goals = []
    for label, counts in outcomes.items():
        right, too_small = counts["right"], counts["too small"]
        goals += [
            make_goal(f"right_{label}", right, f">= {0.8 * sets:g}", met=right >= 0.8 * sets),
            make_goal(f"too_small_{label}", too_small, f"<= {0.05 * sets:g}", met=too_small <= 0.05 * sets),
        ]
    return goals


if __name__ == "__main__":
    main()
