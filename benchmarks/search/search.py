"""Claim: Acuity names the resolution that a label needs at half the cost of plain Optuna, confirmation included.

Searches are replayed on surrogates of recorded learning curves (benchmarks/search/record_curves.py). A strategy asks
for configurations for all labels of an image set. Simulated workers pay the recorded CPU seconds epoch by epoch. At
several costs the strategy's nominees are confirmed as `acuity confirm` does.

The verdict is the smallest resolution that is not MARGIN below the reference, with all smaller ones tried. It rests on
the AUC on patients that no search sees, as if test patients were unlimited. The goals are for phantoms and up to 8
workers. The truth of nih is less certain, so that its costs are printed without goals. One unit of cost is one whole
training at the largest resolution for each label. Strategies were designed on the image sets "design", "validation" and
"previous"; "report" was used only for the final result.

    python benchmarks/search/search.py [IMAGE SET] [--repetitions 100] [--workers 1 8 32] [--only random acuity]

Syne Tune's strategies need it: pip install --no-deps syne-tune dill statsmodels patsy sortedcontainers
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import warnings
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from record_curves import ARCHITECTURES, BATCH_SIZES, CURVES, EPOCHS, LABELS, LEARNING_RATES, RESOLUTIONS, SEEDS
from replay import CONFIRMATIONS, Trial, confirm, replay
from search_costs import costs, goals
from strategies import AFTER_ANOTHER, ANOTHER, RATES, STRATEGIES, unit_seconds
from surrogate import Configuration, Surrogate, fit, validate

sys.path.append(str(Path(__file__).parents[1]))
from result_line import print_result

UNITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
NEAR = 0.005
"""A configuration or resolution counts as found if its AUC is at most this far below the best."""
MARGIN = 0.02
"""A resolution is inadequate if its AUC is this far below the best. Acuity's default."""
FEWEST_CURVES = 40
FEWER = {
    "hyperband": 40,
    "asha": 40,
    "syne tune asha": 40,
    "syne tune bohb": 40,
    "acuity, labels alone": 40,
    "acuity, even first trials": 40,
    "gp": 10,
}
"""Maximum number of repetitions of strategies that are slow to replay and that no goal uses."""


@dataclass(frozen=True)
class Label:
    """A label's surrogate and its true answers."""

    name: str
    surrogate: Surrogate
    unit_s: float
    attainable: dict[int, float]
    """The highest mean test AUC at each resolution."""
    grid_units: float
    """Cost of the whole recorded factorial."""

    @property
    def best(self) -> float:
        """The highest mean test AUC of the space."""
        return max(self.attainable.values())

    @property
    def references(self) -> set[int]:
        """Resolutions whose highest AUC is within NEAR of the best."""
        return {resolution for resolution, auc in self.attainable.items() if auc >= self.best - NEAR}

    @property
    def verdicts(self) -> set[int]:
        """The smallest resolution that is not MARGIN below the best; several if they differ by less than NEAR."""
        edges = (self.best - MARGIN - NEAR, self.best - MARGIN, self.best - MARGIN + NEAR)
        return {_smallest(self.attainable, at_least=edge) for edge in edges}


def main() -> None:
    """Validate the surrogates, replay, print the tables and one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image_set", nargs="?", choices=list(LABELS), default="report")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # the Gaussian process warns that a length scale is at its bound
    if asked.image_set == ANOTHER:
        asked.only = [strategy for strategy in asked.only if strategy != AFTER_ANOTHER]
    if any(name.startswith("syne tune") for name in asked.only) and find_spec("syne_tune") is None:
        sys.exit(f"Syne Tune is not installed: see {__file__}, or name the strategies without it by --only")
    rows = pd.read_parquet(CURVES)
    rows = rows[rows["image_set"] == asked.image_set]
    _check_enough(rows, asked.image_set)
    checked = {label: validate(_of(rows, label)) for label in LABELS[asked.image_set]}
    print(pd.DataFrame(checked).T.round(3).to_string(), flush=True)
    _prepare(rows, asked.image_set)
    truth = {name: _truth(label, _of(rows, name)) for name, label in _labels.items()}
    print(json.dumps(truth, indent=1), flush=True)
    tasks = [
        (strategy, workers, repetition)
        for repetition in range(asked.repetitions)
        for workers in asked.workers
        for strategy in asked.only
        if repetition < FEWER.get(strategy, asked.repetitions)
    ]
    with multiprocessing.get_context("spawn").Pool(asked.processes, _prepare, (rows, asked.image_set)) as pool:
        outcomes = pd.DataFrame([row for found in pool.imap_unordered(_run, tasks, chunksize=8) for row in found])
    table = _summarise(outcomes)
    print(table.to_string(), flush=True)
    grid_units = float(np.mean([label.grid_units for label in _labels.values()]))
    found = costs(outcomes, grid_units=grid_units)
    for row in found:
        print(row)
    print_result(
        "search",
        n=asked.repetitions,
        goals=goals(found, outcomes) if asked.image_set == "report" else [],
        versions={name: version(name) for name in ("optuna", "syne-tune") if find_spec(name.replace("-", "_"))},
        image_set=asked.image_set,
        n_at_most={strategy: FEWER[strategy] for strategy in asked.only if strategy in FEWER},
        curves=len(rows),
        surrogates=checked,
        truth=truth,
        grid_units=round(grid_units, 1),
        costs=found,
        **{column: _by_strategy(table, column, asked) for column in table.columns},
    )


def _check_enough(rows: pd.DataFrame, image_set: str) -> None:
    counts = {label: int((rows["label"] == label).sum()) for label in LABELS[image_set]}
    few = [f"{label} has {count}" for label, count in counts.items() if count < FEWEST_CURVES]
    if few:
        sys.exit(
            f"{image_set}: {'; '.join(few)} curves, {FEWEST_CURVES} are needed: "
            "`python benchmarks/search/record_curves.py "
            f"--sets {image_set}` continues the recording"
        )


_labels: dict[str, Label] = {}
"""Labels of the image set, by name."""


def _prepare(rows: pd.DataFrame, image_set: str) -> None:
    """Fit the surrogates, once in each process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    for name in LABELS[image_set]:
        _labels[name] = make_label(name, rows)


def _of(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    return rows[rows["label"] == label].reset_index(drop=True)


def make_label(name: str, rows: pd.DataFrame) -> Label:
    """Fit a label's surrogate to the recorded curves of its image set, and compute its true answers."""
    surrogate = fit(_of(rows, name))
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
    unit_s = unit_seconds(surrogate)
    cells = itertools.product(RESOLUTIONS, ARCHITECTURES, BATCH_SIZES, LEARNING_RATES)
    grid_s = float(surrogate.epoch_seconds([Configuration(*cell) for cell in cells]).sum()) * EPOCHS
    return Label(name, surrogate, unit_s, attainable, grid_s / unit_s)


def _truth(label: Label, rows: pd.DataFrame) -> dict[str, Any]:
    """Attainable AUCs by the surrogate, and mean recorded test AUCs of the seeds of the best cells (--top)."""
    by_resolution = {}
    for resolution, attainable in label.attainable.items():
        aucs = rows[(rows["resolution"] == resolution) & ~rows["seed"].isin(SEEDS)]["test_auc"].dropna()
        by_resolution[str(resolution)] = {
            "attainable": round(attainable, 4),
            "recorded": round(float(aucs.mean()), 4) if len(aucs) else None,
            "recorded_se": round(float(aucs.sem()), 4) if len(aucs) > 1 else None,
            "seeds": len(aucs),
        }
    return {"verdicts": sorted(label.verdicts), "references": sorted(label.references), "auc": by_resolution}


def _smallest(attainable: dict[int, float], *, at_least: float) -> int:
    return min(resolution for resolution, auc in attainable.items() if auc >= at_least)


def _run(task: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Replay one search for all labels of the image set and judge it at every cost."""
    strategy, workers, repetition = task
    seed = zlib.crc32(f"{workers} {repetition}".encode())  # the same for every strategy
    rng = np.random.default_rng(seed)
    unit_s = sum(label.unit_s for label in _labels.values())  # one whole training for each label
    trials = replay(
        STRATEGIES[strategy](list(_labels), seed % 2**31, workers),
        {name: label.surrogate for name, label in _labels.items()},
        workers=workers,
        most_cost=UNITS[-1] * unit_s,
        rng=rng,
    )
    return [
        {"label": name, "strategy": strategy, "workers": workers, "units": units, "repetition": repetition}
        | _judge(
            label,
            [trial for trial in trials if trial.label == name and trial.spent <= units * unit_s],
            rng,
            workers=max(1, workers // len(_labels)),
        )
        for units in UNITS
        for name, label in _labels.items()
    ]


def _judge(label: Label, trials: list[Trial], rng: np.random.Generator, *, workers: int) -> dict[str, Any]:
    """Judge the nominee of a label's trials, before and after a confirmation by so many workers."""
    complete = [trial for trial in trials if trial.complete]
    row: dict[str, Any] = {"trials": len(trials), "curve_regret": _curve_regret(label, complete)}
    if not complete:
        worst = label.best - 0.5
        answer = {"final_regret": worst, "reference": False, "verdict": False, "confirm_units": 0.0}
        return (
            row
            | {"regret": worst}
            | {f"{name}_{key}": value for name in CONFIRMATIONS for key, value in answer.items()}
        )
    nominee = max(complete, key=lambda trial: trial.auc).configuration
    row["regret"] = label.best - float(label.surrogate.truth([nominee])[0])
    tried = {trial.configuration.resolution for trial in trials}
    for name, confirmation in CONFIRMATIONS.items():
        finalists, reference, cost = confirm(
            trials, label.surrogate, rng=rng, confirmation=confirmation, workers=workers
        )
        true_aucs = dict(zip(finalists, label.surrogate.truth(list(finalists.values())).tolist(), strict=True))
        named = _named(true_aucs)
        row |= {
            f"{name}_final_regret": label.best - true_aucs[reference],
            f"{name}_reference": reference in label.references,
            # A smaller resolution is known to be worse only if it was tried.
            f"{name}_verdict": named in label.verdicts and all(at in tried for at in RESOLUTIONS if at < named),
            f"{name}_confirm_units": cost / label.unit_s,
        }
    return row


def _named(true_aucs: dict[int, float]) -> int:
    """The verdict with unlimited test patients: tested against every larger resolution, as Acuity does."""

    def adequate(resolution: int) -> bool:
        return true_aucs[resolution] > max(auc for at, auc in true_aucs.items() if at >= resolution) - MARGIN

    return list(itertools.takewhile(adequate, sorted(true_aucs, reverse=True)))[-1]


def _curve_regret(label: Label, complete: list[Trial]) -> float:
    """Mean over resolutions of the attainable AUC minus the true AUC of the resolution's best trial."""
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
    columns = outcomes.columns.difference(["label", "repetition", "workers", "strategy", "units"], sort=False)
    return outcomes.groupby(["workers", "strategy", "units"])[list(columns)].mean().round(4)


def _by_strategy(table: pd.DataFrame, column: str, asked: argparse.Namespace) -> dict[str, Any]:
    return {
        f"{workers} workers": {strategy: table.loc[(workers, strategy)][column].to_dict() for strategy in asked.only}
        for workers in asked.workers
    }


if __name__ == "__main__":
    main()
