"""Figures of the search: feasible batch sizes, parameter importance, pruning and cost."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from acuity.study.colours import BLUE, GREY, LIGHT
from acuity.study.report.style import in_lines, series
from acuity.study.results.summary import PARAMETERS, SearchSummary

_DEEPEST = 0.10
"""Loss of AUC at which the colour scale ends."""


def batch_panel(summaries: list[SearchSummary], architecture: str, *, resolutions: tuple[int, ...]) -> Figure:
    """AUC that an architecture loses at each resolution and batch size, and the batch sizes that do not fit."""
    lost, feasible = _lost(summaries, architecture), _feasible(summaries, architecture)
    batches = _batches(summaries)
    figure = Figure(figsize=(3.5, 0.75 + 0.27 * len(batches) + 0.3))
    draw_batches(figure.subplots(), lost, feasible, architecture=architecture, resolutions=resolutions, batches=batches)
    return figure


def batch_figure(
    summaries: list[SearchSummary], *, architectures: tuple[str, ...], resolutions: tuple[int, ...]
) -> Figure:
    """Batch panels of all architectures for a paper."""
    batches = _batches(summaries)
    columns = min(2, len(architectures))
    rows = -(-len(architectures) // columns)
    figure = Figure(figsize=(3.6 * columns, (1.05 + 0.25 * len(batches)) * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, architecture in zip(axes, architectures, strict=False):
        lost, feasible = _lost(summaries, architecture), _feasible(summaries, architecture)
        draw_batches(axis, lost, feasible, architecture=architecture, resolutions=resolutions, batches=batches)
    for position, axis in enumerate(axes):
        axis.set_visible(position < len(architectures))
        if position % columns:
            axis.set_ylabel("")
    return figure


def draw_batches(
    axis: Axes,
    lost: dict[tuple[int, int], float],
    feasible: dict[int, int],
    *,
    architecture: str,
    resolutions: tuple[int, ...],
    batches: list[int],
) -> None:
    """One cell per resolution and batch: AUC less the label's best, mean over labels; hatched where it does not fit."""
    scale = Normalize(-_DEEPEST, 0)
    colours = colormaps["Blues"]  # the more AUC is lost, the lighter, also in a grey print
    for column, resolution in enumerate(resolutions):
        for row, batch in enumerate(batches):
            corner, largest = (column - 0.5, row - 0.5), feasible.get(resolution)
            if (resolution, batch) in lost:
                value = lost[resolution, batch]
                depth = float(scale(max(value, -_DEEPEST)))
                axis.add_patch(Rectangle(corner, 1, 1, facecolor=colours(depth), edgecolor="white", linewidth=0.8))
                if len(resolutions) <= 9:
                    words = f"{abs(value):.3f}"[1:] if value > -0.9995 else ""
                    tone = "white" if depth > 0.55 else "black"
                    axis.text(column, row, words, ha="center", va="center", fontsize=6, color=tone)
            elif largest is not None and batch > 2 ** round(np.log2(largest)):
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


def importance_figure(summaries: list[SearchSummary], *, width: float = 3.5) -> Figure:
    """One row per label, one marker per parameter; the shares of a row add up to 1."""
    known = [each for each in summaries if each.importance is not None]
    figure = Figure(figsize=(width, 0.95 + 0.26 * len(known)))
    axis = figure.subplots()
    for position, (name, words) in enumerate(PARAMETERS.items()):
        rows = [
            (row, (each.importance or {})[name]) for row, each in enumerate(known) if name in (each.importance or {})
        ]
        colour, marker, _ = series(position)
        y, x = [row for row, _ in rows], [share for _, share in rows]
        axis.plot(x, y, marker, color=colour, markersize=5.5, label=words, clip_on=False, zorder=3, alpha=0.9)
    axis.set_yticks(range(len(known)), [in_lines(each.label, 22) for each in known])
    axis.set_ylim(len(known) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_xlabel("Importance (share, PED-ANOVA)")
    axis.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axis.grid(axis="x", color="#F2F2F2", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=4 if width > 4 else 2, handletextpad=0.1, columnspacing=1.0)
    return figure


def pruning_panel(summaries: list[SearchSummary]) -> Figure:
    """Number of complete and of pruned trials of all labels at each resolution."""
    figure = Figure(figsize=(3.5, 2.4))
    _draw_pruning(figure.subplots(), summaries)
    return figure


def cost_panel(summaries: list[SearchSummary]) -> Figure:
    """Duration of a complete training at each resolution, by architecture."""
    figure = Figure(figsize=(3.5, 2.4))
    _draw_cost(figure.subplots(), summaries)
    return figure


def cost_figure(summaries: list[SearchSummary]) -> Figure:
    """The pruning and the cost panel in one figure for a paper."""
    figure = Figure(figsize=(7.2, 2.5))
    left, right = figure.subplots(1, 2)
    _draw_pruning(left, summaries)
    _draw_cost(right, summaries)
    return figure


def _draw_pruning(axis: Axes, summaries: list[SearchSummary]) -> None:
    table = pd.concat([each.resolutions for each in summaries]).groupby("resolution").sum()
    places = np.arange(len(table))
    axis.bar(places, table["complete"], width=0.7, color=BLUE, label="complete")
    axis.bar(
        places,
        table["pruned"],
        width=0.7,
        bottom=table["complete"],
        facecolor="white",
        edgecolor=GREY,
        hatch="////",
        linewidth=0.7,
        label="pruned",
    )
    axis.set_xticks(places, [str(each) for each in table.index])
    axis.set_title("Trials")
    axis.set_xlabel("Image resolution (px)")
    axis.set_ylabel("Trials, all labels")
    axis.set_ylim(0, max(1, (table["complete"] + table["pruned"]).max()) * 1.22)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.legend(loc="upper center", ncols=2)


def _draw_cost(axis: Axes, summaries: list[SearchSummary]) -> None:
    cells = pd.concat([each.cells for each in summaries]).dropna(subset=["seconds"])
    columns = ["seconds", "seconds_low", "seconds_high"]
    table = cells.groupby(["architecture", "resolution"])[columns].median() / 60
    for position, architecture in enumerate(table.index.get_level_values(0).unique()):
        rows = table.loc[architecture]
        colour, marker, line = series(position)
        axis.errorbar(
            rows.index,
            rows["seconds"],
            yerr=[rows["seconds"] - rows["seconds_low"], rows["seconds_high"] - rows["seconds"]],
            color=colour,
            marker=marker,
            linestyle=line,
            elinewidth=0.8,
            capsize=2,
            label=architecture,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = sorted({int(each) for each in table.index.get_level_values(1)})
    axis.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) < 6 else ticks[::2]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title("Cost")
    axis.set_xlabel("Image resolution (px)")
    axis.set_ylabel("Training time (min)")
    axis.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(loc="upper left", title=None)


def _lost(summaries: list[SearchSummary], architecture: str) -> dict[tuple[int, int], float]:
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
    table = pd.concat([each.cells for each in summaries])
    largest = table[table["architecture"] == architecture].groupby("resolution")["feasible"].max().dropna()
    return {int(resolution): int(size) for resolution, size in largest.items()}  # type: ignore[call-overload]


def _batches(summaries: list[SearchSummary]) -> list[int]:
    """Every power of two from the smallest batch that ran to the largest."""
    sizes = [int(size) for each in summaries for size in each.batches["batch"]] or [2]
    low, high = int(np.log2(min(sizes))), int(np.log2(max(sizes)))
    return [2**power for power in range(low, high + 1)]
