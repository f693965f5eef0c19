"""Claim: after its initial trials, Acuity has tuned every resolution with as many trials, whatever the label.

A resolution with more trials has a better best configuration, and the verdict compares the best of each resolution.
Searches are replayed as in search.py. Printed are, for each label and resolution, the number of trials and the
shortfall: the attainable AUC minus the true AUC of the best complete trial.

    python benchmarks/search/tuning.py [IMAGE SET] [--repetitions 24] [--workers 1 8]
"""

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from record_curves import CURVES, LABELS, RESOLUTIONS
from replay import replay
from search import Label, make_label
from strategies import STRATEGIES

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

UNITS = (4, 6, 10)
_AFTER_INITIAL_TRIALS = 6


def main() -> None:
    """Replay, print the table and the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image_set", nargs="?", choices=list(LABELS), default="report")
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    asked = parser.parse_args()
    rows = pd.read_parquet(CURVES)
    rows = rows[rows["image_set"] == asked.image_set]
    labels = {name: make_label(name, rows) for name in LABELS[asked.image_set]}
    found = pd.DataFrame(
        [
            row
            for repetition in range(asked.repetitions)
            for workers in asked.workers
            for row in _replay(labels, workers=workers, repetition=repetition)
        ]
    )
    table = found.groupby(["workers", "units", "label", "resolution"])[["trials", "shortfall"]].mean()
    print(table.unstack("resolution").round(3).to_string(), flush=True)
    early = found[found["units"] == _AFTER_INITIAL_TRIALS].groupby(["workers", "label", "resolution"])["trials"].mean()
    spread = float((early.groupby(["workers", "label"]).max() / early.groupby(["workers", "label"]).min()).max())
    print_result(
        "tuning",
        n=asked.repetitions,
        goals=[make_goal("most_over_fewest_trials_after_6_units", spread, "<= 2", met=spread <= 2)],
        image_set=asked.image_set,
        cells=[
            dict(zip(table.index.names, key, strict=True)) | {name: round(value, 4) for name, value in row.items()}
            for key, row in table.iterrows()
        ],
    )


def _replay(labels: dict[str, Label], *, workers: int, repetition: int) -> list[dict[str, object]]:
    seed = zlib.crc32(f"{workers} {repetition}".encode())
    unit_s = sum(label.unit_s for label in labels.values())
    trials = replay(
        STRATEGIES["acuity"](list(labels), seed % 2**31, workers),
        {name: label.surrogate for name, label in labels.items()},
        workers=workers,
        most_cost=UNITS[-1] * unit_s,
        rng=np.random.default_rng(seed),
    )
    rows: list[dict[str, object]] = []
    for units in UNITS:
        for name, label in labels.items():
            for resolution in RESOLUTIONS:
                there = [
                    trial
                    for trial in trials
                    if trial.label == name
                    and trial.spent <= units * unit_s
                    and trial.configuration.resolution == resolution
                ]
                best = max((trial for trial in there if trial.complete), key=lambda trial: trial.auc, default=None)
                true_auc = float(label.surrogate.truth([best.configuration])[0]) if best else 0.5
                row = {"workers": workers, "units": units, "label": name, "resolution": resolution}
                rows.append(row | {"trials": len(there), "shortfall": label.attainable[resolution] - true_auc})
    return rows


if __name__ == "__main__":
    main()
