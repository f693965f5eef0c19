"""Claim: on NIH radiographs every label's search beats a logistic regression on pixels, on the same patients.

Arguments: an experiment file, and the output of its `acuity best NAME --format json` (default: those in docs/nih/). The
input of the regression is each image at 64 px, less its mean brightness. Its AUC is that on the experiment's validation
patients.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.intervals import auc_interval
from acuity.objectives.statistics.metrics import auc
from acuity.study.config.loading import load
from acuity.study.dataset.image_set import labelled_images, open_image_set

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

RESOLUTION = 64
PENALTIES = (1e-4, 1e-3, 1e-2)


def main() -> None:
    """Fit, print the table and one line of JSON. The penalty is the one with the best validation AUC."""
    folder = Path(__file__).resolve().parents[2] / "docs" / "nih"
    file, answer = (
        (Path(name) for name in sys.argv[1:3]) if len(sys.argv) > 2 else (folder / "nih.toml", folder / "best.json")
    )
    experiment, searched = load(file), json.loads(answer.read_text())
    image_set = open_image_set(experiment)
    goals = []
    print(f"{'label':<16}{'regression (95 %)':>24}{'search (95 %)':>24}")
    for entry in searched["labels"]:
        data = labelled_images(image_set, label=entry["label"], resolution=RESOLUTION)
        pixels = np.asarray(data.images).reshape(len(data.images), -1).astype(np.float32) / 255
        pixels -= pixels.mean(axis=1, keepdims=True)
        targets = data.targets[data.validation]
        scored = []
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=500).fit(pixels[data.training], data.targets[data.training])
            scores = model.decision_function(pixels[data.validation])
            error = auc_standard_error(targets, scores, data.patients[data.validation])
            scored.append((auc(targets, scores), error))
        area, error = max(scored)
        low, high = auc_interval(area, error)
        best = entry["best"]
        print(
            f"{entry['label']:<16}{f'{area:.3f} ({low:.2f}-{high:.2f})':>24}"
            f"{'{auc:.3f} ({auc_low:.2f}-{auc_high:.2f})'.format(**best):>24}"
        )
        goals.append(make_goal(f"gain_{entry['label']}", best["auc"] - area, "> 0", met=best["auc"] > area))
    print_result("pixel_regression", n=len(image_set.index.table), goals=goals)


if __name__ == "__main__":
    main()
