"""Figures of pruning and training time against resolution."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from acuity.study.colours import BLUE, GREY
from acuity.study.report.style import series
from acuity.study.results.summary import SearchSummary


def cost_figure(summaries: list[SearchSummary]) -> Figure:
    """The pruning and the cost panel in one figure for a paper."""
    figure = Figure(figsize=(7.2, 2.5))
    left, right = figure.subplots(1, 2)
    _draw_pruning(left, summaries)
    _draw_cost(right, summaries)
    return figure


def pruning_panel(summaries: list[SearchSummary]) -> Figure:
    """Number of complete and of pruned trials of all labels at each resolution."""
    figure = Figure(figsize=(3.5, 2.4))
    _draw_pruning(figure.subplots(), summaries)
    return figure


def cost_panel(summaries: list[SearchSummary]) -> Figure:
    """Training time of a complete trial at each resolution, by architecture."""
    figure = Figure(figsize=(3.5, 2.4))
    _draw_cost(figure.subplots(), summaries)
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
