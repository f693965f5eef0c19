"""Computes the cost at which a search reaches a criterion: units by strategy, ratios to the peers, and the goals.

Spread is a bootstrap over repetitions. Labels and surrogates are fixed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from replay import CONFIRMATIONS

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal

_BOOTSTRAPS = 1000
OURS, PLAIN, CHANCE = "acuity", "optuna", "random"
_HALF, _QUARTER = 0.5, 0.25
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Criterion:
    """The quality that a search's answer must reach."""

    column: str
    """Column of the outcomes: a mean regret, or the share of right answers."""
    wanted: float
    confirmed: bool = False
    """Whether the cost includes the confirmation of the answer."""

    @property
    def confirm_units(self) -> str:
        """Column with the cost of the confirmation."""
        return self.column.replace("verdict", "confirm_units").replace("reference", "confirm_units")

    @property
    def name(self) -> str:
        return f"{self.column}_{self.wanted:g}" + ("_confirmed" if self.confirmed else "")

    def cost(self, quality: Floats, units: Floats) -> float:
        """Units at which the quality [costs] first reaches the criterion, by linear interpolation; NaN if never."""
        sign = -1 if "regret" in self.column else 1
        lacking = sign * (self.wanted - quality)
        enough = np.flatnonzero(lacking <= 0)
        if not len(enough):
            return np.nan
        at = enough[0]
        if at == 0 or lacking[at] == 0:
            return float(units[at])
        share = lacking[at - 1] / (lacking[at - 1] - lacking[at])
        return float(units[at - 1] + share * (units[at] - units[at - 1]))


BEFORE, DEFAULT = "before", "3_to_4_folds"
"""Names of confirmations: three nominees and five seeds, and the default."""
CRITERIA = (
    *(
        Criterion(f"{confirmation}_verdict", probability, confirmed)
        for confirmation in CONFIRMATIONS
        for probability in (0.7, 0.8, 0.9)
        for confirmed in (True, False)
    ),
    *(Criterion(f"{DEFAULT}_reference", probability, confirmed=True) for probability in (0.8, 0.9)),
    *(Criterion("regret", auc) for auc in (0.05, 0.02, 0.01, 0.005)),
    *(Criterion("curve_regret", auc) for auc in (0.05, 0.02, 0.01)),
)
_GOALS = (*(f"{DEFAULT}_verdict_{share}_confirmed" for share in (0.7, 0.8, 0.9)), "regret_0.02", "regret_0.01")
_MOST_WORKERS = 8
_WHOLE_COST = "verdict_0.8_confirmed"
_MANY_WORKERS, _TWO_THIRDS = 32, 2 / 3


def costs(outcomes: pd.DataFrame, *, grid_units: float) -> list[dict[str, Any]]:
    """For every criterion and number of workers: units by strategy, and Acuity's units over each peer's, [low, high].

    A peer that never reaches the criterion counts as reaching it at the last cost. The whole grid is all of its cells,
    without a confirmation.
    """
    found = []
    for workers, of_workers in outcomes.groupby("workers"):
        for criterion in CRITERIA:
            drawn = {name: _drawn(rows, criterion) for name, rows in of_workers.groupby("strategy")}
            row = {
                "workers": int(str(workers)),
                "until": criterion.name,
                "units": {name: _rounded(reached[0]) for name, (reached, _) in drawn.items()},
            }
            if OURS in drawn:
                ours, _ = drawn[OURS]
                row["ratio"] = {
                    name: _ratio(ours, np.where(np.isnan(reached), last, reached))
                    for name, (reached, last) in drawn.items()
                    if name != OURS
                } | {"whole grid": _ratio(ours, np.array([grid_units]))}
            found.append(row)
        found += _against_before(of_workers, workers=int(str(workers)))
    return found


def _against_before(of_workers: pd.DataFrame, *, workers: int) -> list[dict[str, Any]]:
    """Acuity's whole cost with each confirmation over the whole cost of Acuity and of Optuna with the one before."""
    found = []
    before = Criterion(f"{BEFORE}_verdict", 0.8, confirmed=True)
    peers = [name for name in (OURS, PLAIN) if name in set(of_workers["strategy"])]
    for confirmation in CONFIRMATIONS:
        if OURS not in peers or confirmation == BEFORE:
            continue
        ours, _ = _drawn(
            of_workers[of_workers["strategy"] == OURS], Criterion(f"{confirmation}_verdict", 0.8, confirmed=True)
        )
        row: dict[str, Any] = {"workers": workers, "until": f"{confirmation}_{_WHOLE_COST}_of_before", "ratio": {}}
        for name in peers:
            reached, last = _drawn(of_workers[of_workers["strategy"] == name], before)
            row["ratio"][name] = _ratio(ours, np.where(np.isnan(reached), last, reached))
        found.append(row)
    return found


def goals(found: Sequence[dict[str, Any]], outcomes: pd.DataFrame) -> list[dict[str, Any]]:
    """At most half of plain Optuna's cost and a quarter of the grid's, and on no label worse than random search."""
    kept = []
    for row in found:
        if row["until"] == f"{DEFAULT}_{_WHOLE_COST}_of_before":
            peer, most = (OURS, _HALF) if row["workers"] <= _MOST_WORKERS else (PLAIN, _TWO_THIRDS)
            if peer in row["ratio"] and row["workers"] <= _MANY_WORKERS:
                value, low, high = row["ratio"][peer]
                name = f"{row['until']}_{row['workers']}_workers_of_{peer}"
                met = value is not None and value <= most
                goal = {"name": name, "value": value, "low": low, "high": high, "goal": f"<= {most:.2f}", "met": met}
                kept.append(goal)
            continue
        for peer, most in ((PLAIN, _HALF), ("whole grid", _QUARTER)):
            if row["until"] in _GOALS and row["workers"] <= _MOST_WORKERS and peer in row.get("ratio", {}):
                value, low, high = row["ratio"][peer]
                name = f"{row['until']}_{row['workers']}_workers_of_{peer.replace(' ', '_')}"
                met = value is not None and value <= most
                kept.append({"name": name, "value": value, "low": low, "high": high, "goal": f"<= {most}", "met": met})
    return kept + _against_random(outcomes)


def _against_random(outcomes: pd.DataFrame) -> list[dict[str, Any]]:
    """Acuity's mean regret over all costs minus random search's, for each label: at most 0, one-sided 95 %."""
    kept = []
    both = outcomes[outcomes["strategy"].isin([OURS, CHANCE])]
    if both["strategy"].nunique() < 2:
        return []
    for (label, workers), rows in both.groupby(["label", "workers"]):
        regret = rows.pivot_table(index="repetition", columns="strategy", values=f"{DEFAULT}_final_regret")
        more = regret[OURS] - regret[CHANCE]
        high = float(more.mean() + 1.645 * more.sem())
        name = f"regret_minus_random_{label}_{workers}_workers"
        kept.append(make_goal(name, float(more.mean()), "high <= 0", met=high <= 0, high=high, digits=4))
    return kept


def _drawn(rows: pd.DataFrame, criterion: Criterion) -> tuple[Floats, Floats]:
    """Costs at which the criterion is reached, and the last costs: of all repetitions, then of each bootstrap."""
    quality = _by_repetition(rows, criterion.column)
    units = np.broadcast_to(np.sort(rows["units"].unique()).astype(float), quality.shape)
    if criterion.confirmed:
        units = units + _by_repetition(rows, criterion.confirm_units)
    rng = np.random.default_rng(0)
    picks = [np.arange(len(quality)), *rng.integers(len(quality), size=(_BOOTSTRAPS, len(quality)))]
    means = [(quality[pick].mean(axis=0), units[pick].mean(axis=0)) for pick in picks]
    return np.array([criterion.cost(*mean) for mean in means]), np.array([units[-1] for _, units in means])


def _by_repetition(rows: pd.DataFrame, column: str) -> Floats:
    """Means over labels, [repetitions, costs]."""
    return rows.pivot_table(index="repetition", columns="units", values=column, aggfunc="mean").to_numpy(float)


def _ratio(ours: Floats, theirs: Floats) -> list[float | None]:
    """The ratio, and the 95 % interval of the bootstraps."""
    ratios = np.nan_to_num(ours / theirs, nan=np.inf)
    low, high = np.quantile(ratios[1:], (0.025, 0.975), method="nearest")
    return [_rounded(value) for value in (ratios[0], low, high)]


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None
