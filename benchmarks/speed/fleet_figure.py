"""Draws docs/fleet_scale.svg from the kept results of `benchmarks/speed/fleet_scale.py`. It makes no claim.

python benchmarks/speed/fleet_figure.py
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from acuity.study.report.style import figure_style, series

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fleet_scale.json"
ARMS = {"acuity": "Acuity", "optuna": "Optuna"}
QUANTITIES = {"statements": "statements a trial", "server_cpu_ms": "CPU of Postgres a trial (ms)"}
AXES = {"workers": "workers (100 trials a label)", "size": "trials of a label at the start (16 workers)"}


def main() -> None:
    """Draw statements and CPU time of a trial against workers and trials, where more than one number was measured."""
    cells = [cell for cell in json.loads(RESULTS.read_text())["cells"] if not cell["pgbouncer"] and cell["size"]]
    axes = {axis: what for axis, what in AXES.items() if len(_points(cells, "acuity", axis, "statements")) > 1}
    with figure_style():
        figure = Figure(figsize=(3.3 * len(axes) + 0.6, 4.6))
        panels = figure.subplots(len(QUANTITIES), len(axes), sharex="col", sharey="row", squeeze=False)
        for row, (quantity, what) in zip(panels, QUANTITIES.items(), strict=True):
            for panel, axis in zip(row, axes, strict=True):
                for position, (arm, name) in enumerate(ARMS.items()):
                    points = sorted(_points(cells, arm, axis, quantity))
                    colour, marker, line = series(position)
                    panel.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=name)
                panel.set_xscale("log")
                panel.set_yscale("log")
            row[0].set_ylabel(what)
        for panel, what in zip(panels[-1], axes.values(), strict=True):
            panel.set_xlabel(what)
        panels[0, 0].legend()
        figure.savefig(ROOT / "docs" / "fleet_scale.svg", metadata={"Date": None, "Creator": None})


def _points(cells: list[dict[str, Any]], arm: str, axis: str, quantity: str) -> list[tuple[float, float]]:
    """The mean of a quantity over epochs of 5 and 60 s, by number of workers or by size."""
    fixed = {"workers": ("size", 100), "size": ("workers", 16)}[axis]
    values: dict[float, list[float]] = {}
    for cell in cells:
        if cell["arm"] == arm and cell[fixed[0]] == fixed[1]:
            values.setdefault(cell[axis], []).append(cell[quantity])
    return [(at, sum(found) / len(found)) for at, found in values.items()]


if __name__ == "__main__":
    main()
