"""Figures of AUC and feasibility against batch size and resolution, one panel per architecture."""

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from acuity.study.colours import LIGHT
from acuity.study.results.summary import SearchSummary

CellKind = Literal["tried", "not tried", "infeasible"]
_DEEPEST = 0.10
"""Loss of AUC at which the colour scale ends."""
_SCALE = Normalize(0, _DEEPEST)
_COLOURS = colormaps["Blues_r"].resampled(20)
"""The more AUC is lost, the lighter, also in a grey print. A bar of 50 or more colours would be an image in an SVG."""


def batch_figure(
    summaries: list[SearchSummary], *, architectures: tuple[str, ...], resolutions: tuple[int, ...]
) -> Figure:
    """One figure of all architectures for a paper."""
    batches = _batches(summaries)
    columns = min(2, len(architectures))
    rows = -(-len(architectures) // columns)
    figure = Figure(figsize=(3.6 * columns, (1.05 + 0.25 * len(batches)) * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, architecture in zip(axes, architectures, strict=False):
        lost, feasible = _lost(summaries, architecture), _feasible(summaries, architecture)
        _draw_batches(axis, lost, feasible, architecture=architecture, resolutions=resolutions, batches=batches)
    for position, axis in enumerate(axes):
        axis.set_visible(position < len(architectures))
        if position % columns:
            axis.set_ylabel("")
    _draw_scale(figure, list(axes))
    return figure


def batch_panel(summaries: list[SearchSummary], architecture: str, *, resolutions: tuple[int, ...]) -> Figure:
    """One figure of an architecture for the page, small enough for a phone."""
    lost, feasible = _lost(summaries, architecture), _feasible(summaries, architecture)
    batches = _batches(summaries)
    figure = Figure(figsize=(3.5, 0.75 + 0.27 * len(batches) + 0.3))
    axis = figure.subplots()
    _draw_batches(axis, lost, feasible, architecture=architecture, resolutions=resolutions, batches=batches)
    _draw_scale(figure, [axis])
    return figure


def cell_kinds(
    summaries: list[SearchSummary], *, architectures: tuple[str, ...], resolutions: tuple[int, ...]
) -> set[CellKind]:
    """The kinds of cells in the figures, which their caption explains."""
    batches = _batches(summaries)
    return {
        _cell_kind(lost, feasible, resolution, batch)
        for lost, feasible in ((_lost(summaries, each), _feasible(summaries, each)) for each in architectures)
        for resolution in resolutions
        for batch in batches
    }


def batch_alt(summaries: list[SearchSummary], architecture: str) -> str:
    """The panel in words."""
    feasible = ", ".join(f"{size} at {at} px" for at, size in sorted(_feasible(summaries, architecture).items()))
    return (
        f"Batch sizes of {architecture} at each resolution: AUC lost against the label's best trial, and the largest "
        f"feasible batch: {feasible}."
    )


def _draw_batches(
    axis: Axes,
    lost: dict[tuple[int, int], float],
    feasible: dict[int, int],
    *,
    architecture: str,
    resolutions: tuple[int, ...],
    batches: list[int],
) -> None:
    """Draw one cell per resolution and batch size.

    A cell shows the AUC minus the label's best AUC, as the mean over labels. Infeasible batch sizes are hatched.
    """
    for column, resolution in enumerate(resolutions):
        for row, batch in enumerate(batches):
            corner, kind = (column - 0.5, row - 0.5), _cell_kind(lost, feasible, resolution, batch)
            if kind == "tried":
                value = lost[resolution, batch]
                lightness = float(_SCALE(-value))
                colour = _COLOURS(lightness)
                axis.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
                if len(resolutions) <= 9:
                    words = f"{abs(value):.3f}"[1:] if value > -0.9995 else ""
                    tone = "white" if lightness < 0.45 else "black"
                    axis.text(column, row, words, ha="center", va="center", color=tone)
            elif kind == "infeasible":
                axis.add_patch(
                    Rectangle(corner, 1, 1, facecolor="white", edgecolor=LIGHT, hatch="/////", linewidth=0, zorder=0)
                )
    _draw_edge(axis, feasible, resolutions, batches)
    axis.set_title(architecture)
    axis.set_xlim(-0.5, len(resolutions) - 0.5)
    axis.set_ylim(-0.5, len(batches) - 0.5)
    axis.set_xticks(range(len(resolutions)), [str(each) for each in resolutions])
    axis.set_yticks(range(len(batches)), [str(each) for each in batches])
    axis.tick_params(length=0)
    axis.set_xlabel("Image resolution (px)")
    axis.set_ylabel("Batch size (images)")


def _cell_kind(lost: dict[tuple[int, int], float], feasible: dict[int, int], resolution: int, batch: int) -> CellKind:
    if (resolution, batch) in lost:
        return "tried"
    largest = feasible.get(resolution)
    return "infeasible" if largest is not None and batch > 2 ** round(np.log2(largest)) else "not tried"


def _draw_scale(figure: Figure, axes: list[Axes]) -> None:
    """Draw the colour bar of the cells to the right of the axes."""
    bar = figure.colorbar(ScalarMappable(_SCALE, _COLOURS), ax=axes, extend="max", pad=0.03, fraction=0.06)
    assert bar.solids is not None
    bar.solids.set_edgecolor("face")  # no white lines between the colours
    bar.set_ticks([0, _DEEPEST / 2, _DEEPEST])
    bar.set_label("AUC lost")
    bar.outline.set_visible(False)
    bar.ax.invert_yaxis()  # the smallest loss on top


def _draw_edge(axis: Axes, feasible: dict[int, int], resolutions: tuple[int, ...], batches: list[int]) -> None:
    """Draw the largest feasible batch size as a stepped line along the edges of the cells."""
    x: list[float] = []
    y: list[float] = []
    for column, resolution in enumerate(resolutions):
        if resolution in feasible:
            row = round(np.log2(feasible[resolution] / batches[0]))
            x += [column - 0.5, column + 0.5]
            y += [min(row, len(batches) - 1) + 0.5] * 2
    axis.plot(x, y, color="black", linewidth=1.6, zorder=4, clip_on=False, solid_joinstyle="miter")


def _lost(summaries: list[SearchSummary], architecture: str) -> dict[tuple[int, int], float]:
    """Mean AUC minus the label's best AUC, by resolution and batch size."""
    tables = []
    for each in summaries:
        if len(each.batches):
            tables.append(each.batches.assign(lost=each.batches["auc"] - each.batches["auc"].max()))
    if not tables:
        return {}
    table = pd.concat(tables)
    of_one = table[table["architecture"] == architecture].groupby(["resolution", "batch"])["lost"].mean()
    cells: list[tuple[int, int]] = of_one.index.to_list()
    return dict(zip(cells, of_one.to_list(), strict=True))


def _feasible(summaries: list[SearchSummary], architecture: str) -> dict[int, int]:
    """The largest feasible batch size at each resolution."""
    table = pd.concat([each.cells for each in summaries])
    largest = table[table["architecture"] == architecture].groupby("resolution")["feasible"].max().dropna()
    return {int(resolution): int(size) for resolution, size in largest.items()}  # type: ignore[call-overload]


def _batches(summaries: list[SearchSummary]) -> list[int]:
    """Every power of two from the smallest trained batch size to the largest."""
    sizes = [int(size) for each in summaries for size in each.batches["batch"]] or [2]
    low, high = int(np.log2(min(sizes))), int(np.log2(max(sizes)))
    return [2**power for power in range(low, high + 1)]
