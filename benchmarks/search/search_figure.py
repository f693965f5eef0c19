"""Draws docs/search.svg from the kept results of `benchmarks/search/search.py`. It makes no claim.

python benchmarks/search/search_figure.py
"""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acuity.study.report.style import figure_style, series

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = {
    "acuity": "Acuity",
    "optuna": "Optuna, its defaults",
    "hyperband": "Optuna, Hyperband",
    "syne tune bohb": "Syne Tune, BOHB",
    "random": "random search",
}
QUANTITIES = {
    "regret": "best trial",
    "curve_regret": "all resolutions",
}
WORKERS = (1, 8)


def main() -> None:
    """Draw one row per number of workers: left the best trial, right the mean over all resolutions' best trials."""
    others, result = (
        json.loads((RESULTS / name).read_text()) for name in ("search_report.json", "search_report_designs.json")
    )
    with figure_style():
        figure = Figure(figsize=(6.6, 4.6))
        panels = figure.subplots(len(WORKERS), len(QUANTITIES), sharex=True, sharey="col", squeeze=False)
        for row, workers in zip(panels, WORKERS, strict=True):
            for axis, (column, what) in zip(row, QUANTITIES.items(), strict=True):
                key = f"{workers} workers"
                _draw(axis, others[column][key] | result[column][key])
                axis.set_title(f"{what}, {workers} worker{'s' if workers > 1 else ''}")
        for axis in panels[:, 0]:
            axis.set_ylabel("AUC below what there is")
        for axis in panels[-1]:
            axis.set_xlabel("cost (whole trainings at 128 px for each label)")
        panels[0, 0].legend(loc="upper right")
        figure.savefig(ROOT / "docs" / "search.svg", metadata={"Date": None, "Creator": None})


def _draw(axis: Axes, by_strategy: dict[str, dict[str, float]]) -> None:
    for position, (strategy, name) in enumerate(SHOWN.items()):
        if strategy in by_strategy:
            colour, marker, line = series(position)
            costs = [float(cost) for cost in by_strategy[strategy]]
            axis.plot(
                costs, list(by_strategy[strategy].values()), color=colour, marker=marker, linestyle=line, label=name
            )
    axis.set_yscale("log")
    axis.set_yticks([0.005, 0.01, 0.02, 0.05, 0.1, 0.2], [".005", ".01", ".02", ".05", ".1", ".2"])
    axis.minorticks_off()
    axis.set_ylim(0.004, 0.4)
    axis.axhline(0.02, color="#D9D9D9", zorder=0)


if __name__ == "__main__":
    main()
