"""Claim: Acuity names the resolution that a label needs at half the cost of plain Optuna, confirmation included.

Replays searches on surrogates of recorded learning curves (benchmarks/record_curves.py): a strategy asks for
configurations for all labels of an image set, simulated workers pay the recorded CPU seconds epoch by epoch, and what
the strategy would nominate at several costs is confirmed as `acuity confirm` does. Judged by the AUC on patients of
whom no search knows. One unit of cost is one whole training at the largest resolution for each label. Strategies were
designed on the image set "design" alone.

    python benchmarks/search.py [--sets report nih] [--repetitions 100] [--workers 1 8] [--only random acuity]
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from record_curves import ARCHITECTURES, BATCH_SIZES, CURVES, LABELS, RESOLUTIONS
from replay import Trial, confirm, replay
from strategies import RATES, STRATEGIES
from surrogate import Configuration, Surrogate, fit, validate

UNITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
NEAR = 0.005
"""AUC within which of the best a configuration, or a resolution, counts as found."""
FEWEST_CURVES = 40
REGRETS = (0.05, 0.02, 0.01)
"""Mean AUC below the best at which costs are compared."""
CERTAIN = (0.7, 0.8, 0.9)
"""Probabilities of the right reference at which costs are compared."""


@dataclass(frozen=True)
class Label:
    """A label's surrogate and what is true of it."""

    name: str
    surrogate: Surrogate
    unit_s: float
    attainable: dict[int, float]
    """The highest mean test AUC at each resolution."""
    adequate: frozenset[int]
    """Resolutions that can come within NEAR of the best."""

    @property
    def best(self) -> float:
        """The highest mean test AUC of the space."""
        return max(self.attainable.values())


def main() -> None:
    """Validate the surrogates, replay, print the tables and one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="+", default=["report", "nih"])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # a Gaussian process's length at its bound
    rows = pd.read_parquet(CURVES)
    rows = rows[rows["image_set"].isin(asked.sets)]
    names = [f"{image_set}/{label}" for image_set in asked.sets for label in LABELS[image_set]]
    _check_enough(rows, asked.sets)
    checked = {name: validate(_of(rows, name)) for name in names}
    print(pd.DataFrame(checked).T.round(3).to_string(), flush=True)
    tasks = [
        (image_set, strategy, workers, repetition)
        for repetition in range(asked.repetitions)
        for image_set in asked.sets
        for workers in asked.workers
        for strategy in asked.only
    ]
    with multiprocessing.get_context("spawn").Pool(asked.processes, _prepare, (rows, names)) as pool:
        outcomes = pd.DataFrame([row for found in pool.imap_unordered(_run, tasks, chunksize=8) for row in found])
    tables = _summarise(outcomes)
    print(tables.to_string(), flush=True)
    print(json.dumps(_result(tables, checked, asked, len(rows))))


def _check_enough(rows: pd.DataFrame, image_sets: list[str]) -> None:
    counts = {
        f"{image_set}/{label}": int(((rows["image_set"] == image_set) & (rows["label"] == label)).sum())
        for image_set in image_sets
        for label in LABELS[image_set]
    }
    few = [f"{name} has {count}" for name, count in counts.items() if count < FEWEST_CURVES]
    if few:
        sys.exit(
            f"{'; '.join(few)} curves, {FEWEST_CURVES} are needed: `python benchmarks/record_curves.py` records "
            "more and goes on where it stopped"
        )


_labels: dict[str, list[Label]] = {}
"""Of each image set."""


def _prepare(rows: pd.DataFrame, names: list[str]) -> None:
    """In each process, once."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    for name in names:
        _labels.setdefault(name.split("/")[0], []).append(_label(name, fit(_of(rows, name))))


def _of(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    image_set, label = name.split("/")
    return rows[(rows["image_set"] == image_set) & (rows["label"] == label)].reset_index(drop=True)


def _label(name: str, surrogate: Surrogate) -> Label:
    rates = np.geomspace(*RATES, 21)
    attainable = {
        resolution: float(
            surrogate.truth(
                [
                    Configuration(resolution, architecture, batch, float(rate))
                    for architecture in ARCHITECTURES
                    for batch in BATCH_SIZES
                    for rate in rates
                ]
            ).max()
        )
        for resolution in RESOLUTIONS
    }
    best = max(attainable.values())
    largest = [Configuration(max(RESOLUTIONS), architecture, 16, 3e-3) for architecture in ARCHITECTURES]
    unit_s = float(surrogate.epoch_seconds(largest).mean()) * (surrogate.residuals.shape[1] - 1)
    adequate = frozenset(resolution for resolution, auc in attainable.items() if auc >= best - NEAR)
    return Label(name, surrogate, unit_s, attainable, adequate)


def _run(task: tuple[str, str, int, int]) -> list[dict[str, Any]]:
    """One search for all labels of an image set, judged at every cost."""
    image_set, strategy, workers, repetition = task
    labels = {label.name: label for label in _labels[image_set]}
    seed = zlib.crc32(f"{image_set} {workers} {repetition}".encode())  # the same noise for every strategy
    rng = np.random.default_rng(seed)
    unit_s = sum(label.unit_s for label in labels.values())  # one whole training for each label
    trials = replay(
        STRATEGIES[strategy](list(labels), seed % 2**31, workers),
        {name: label.surrogate for name, label in labels.items()},
        workers=workers,
        most_cost=UNITS[-1] * unit_s,
        rng=rng,
    )
    return [
        {"label": name, "strategy": strategy, "workers": workers, "units": units, "repetition": repetition}
        | _judge(label, [trial for trial in trials if trial.label == name and trial.spent <= units * unit_s], rng)
        for units in UNITS
        for name, label in labels.items()
    ]


def _judge(label: Label, told: list[Trial], rng: np.random.Generator) -> dict[str, Any]:
    """What a label's trials nominate, and what is left of it after a confirmation."""
    complete = [trial for trial in told if trial.complete]
    row: dict[str, Any] = {"trials": len(told), "curve_regret": _curve_regret(label, complete)}
    if not complete:
        worst = label.best - 0.5
        return row | {"regret": worst, "final_regret": worst, "right": False, "confirm_units": 0.0}
    nominee = max(complete, key=lambda trial: trial.auc).configuration
    reference, cost, finalist = confirm(told, label.surrogate, rng=rng)
    nominated, final = label.surrogate.truth([nominee, finalist])
    return row | {
        "regret": label.best - nominated,
        "final_regret": label.best - final,
        "right": reference in label.adequate,
        "confirm_units": cost / label.unit_s,
    }


def _curve_regret(label: Label, complete: list[Trial]) -> float:
    """Mean over resolutions of what each one's best trial is below what it could be: how well the curve is known."""
    below = []
    for resolution, attainable in label.attainable.items():
        there = [trial for trial in complete if trial.configuration.resolution == resolution]
        if there:
            chosen = max(there, key=lambda trial: trial.auc).configuration
            below.append(attainable - float(label.surrogate.truth([chosen])[0]))
        else:
            below.append(attainable - 0.5)
    return float(np.mean(below))


def _summarise(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Means over repetitions and labels, by workers, strategy and cost of the search."""
    grouped = outcomes.groupby(["workers", "strategy", "units"])
    table = grouped[["trials", "regret", "curve_regret", "final_regret", "right", "confirm_units"]].mean()
    table["regret_se"] = grouped["regret"].sem()
    table["near"] = grouped["regret"].apply(lambda regret: (regret <= NEAR).mean())
    return table.round(4)


def _cost_of(table: pd.DataFrame, *, column: str, wanted: float, confirmed: bool) -> float:
    """Units at which a column first reaches what is wanted, between costs linearly; NaN where it never does."""
    costs = table.index.to_numpy(float) + (table["confirm_units"].to_numpy() if confirmed else 0)
    sign = -1 if "regret" in column else 1
    reached = np.maximum.accumulate(sign * table[column].to_numpy(float))
    if reached[-1] < sign * wanted:
        return float("nan")
    return float(np.interp(sign * wanted, reached, costs))


def _result(table: pd.DataFrame, checked: dict[str, Any], asked: argparse.Namespace, curves: int) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "benchmark": "search",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "n": asked.repetitions,
        "curves": curves,
        "surrogates": checked,
        "probability_right": _by_strategy(table, "right", asked),
        "mean_regret": _by_strategy(table, "regret", asked),
        "mean_curve_regret": _by_strategy(table, "curve_regret", asked),
        "costs": _costs(table, asked),
    }


def _by_strategy(table: pd.DataFrame, column: str, asked: argparse.Namespace) -> dict[str, Any]:
    return {
        f"{workers} workers": {strategy: table.loc[(workers, strategy)][column].to_dict() for strategy in asked.only}
        for workers in asked.workers
    }


def _costs(table: pd.DataFrame, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Units until the right reference is as probable, and until the best trial is as good, by strategy."""
    compared = [("right", probability, confirmed) for probability in CERTAIN for confirmed in (False, True)]
    compared += [(column, regret, False) for column in ("regret", "curve_regret") for regret in REGRETS]
    found = []
    for workers in asked.workers:
        for column, wanted, confirmed in compared:
            costs = {
                strategy: _cost_of(table.loc[(workers, strategy)], column=column, wanted=wanted, confirmed=confirmed)
                for strategy in asked.only
            }
            units = {strategy: None if np.isnan(cost) else round(cost, 2) for strategy, cost in costs.items()}
            found.append(
                {"workers": workers, "until": column, "is": wanted, "with_confirmation": confirmed, "units": units}
            )
            print(found[-1])
    return found


if __name__ == "__main__":
    main()
