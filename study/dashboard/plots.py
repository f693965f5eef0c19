"""Plots of a label for optuna-dashboard: AUC against resolution, training time and batch size."""

from html import escape
from typing import Any

import plotly.graph_objects as go

from acuity.objectives.statistics.intervals import CHANCE
from acuity.study.colours import BLUE, GREY, ORANGE, SERIES
from acuity.study.results.answer import LabelAnswer, ResolutionAnswer
from acuity.study.results.doubts import NEAR_CHANCE
from acuity.study.results.summary import SearchSummary

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down")
_DASHES = ("solid", "dash", "dashdot", "dot", "longdashdot")


def dashboard_plots(entry: LabelAnswer, summary: SearchSummary) -> dict[str, go.Figure]:
    """The plots, by their names in the dashboard. A new plot replaces the plot of the same name."""
    return {
        "auc-by-resolution": _by_resolution(entry),
        "auc-by-training-time": _by_cost(entry.label, summary),
        "auc-by-batch-size": _by_batch(entry.label, summary),
    }


def _by_resolution(entry: LabelAnswer) -> go.Figure:
    figure = _figure(entry.label, "AUC against resolution (95 % intervals)", "Image resolution (px)")
    for split, words, colour, symbol, dash in (
        ("validation", "search, validation patients (optimistic)", ORANGE, "square-open", "dash"),
        ("test", "test patients, mean of networks", BLUE, "circle", "solid"),
    ):
        points = [at for at in entry.by_resolution if at.split == split and at.auc is not None]
        if points:
            figure.add_trace(_with_intervals(points, words, colour=colour, symbol=symbol, dash=dash))
    if entry.reference is not None and entry.smallest_adequate is not None:
        floor = entry.reference["auc"] - entry.smallest_adequate["margin"]
        ends = [entry.by_resolution[0].resolution, entry.by_resolution[-1].resolution]
        dotted = {"color": GREY, "dash": "dot"}
        figure.add_trace(go.Scatter(x=ends, y=[floor] * 2, mode="lines", name="reference less margin", line=dotted))
    ticks = [at.resolution for at in entry.by_resolution]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(each) for each in ticks])
    known = [at for at in entry.by_resolution if at.auc is not None]
    return _with_chance(figure, [value or 0.0 for at in known for value in (at.auc_low, at.auc, at.auc_high)])


def _with_intervals(points: list[ResolutionAnswer], words: str, *, colour: str, symbol: str, dash: str) -> go.Scatter:
    aucs = [at.auc or 0.0 for at in points]
    return go.Scatter(
        x=[at.resolution for at in points],
        y=aucs,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [(at.auc_high or auc) - auc for at, auc in zip(points, aucs, strict=True)],
            "arrayminus": [auc - (at.auc_low or auc) for at, auc in zip(points, aucs, strict=True)],
        },
        mode="lines+markers",
        name=words,
        line={"color": colour, "dash": dash},
        marker={"symbol": symbol, "size": 9},
    )


def _by_cost(label: str, summary: SearchSummary) -> go.Figure:
    figure = _figure(label, "Validation AUC against training cost", "Training time of the trial (s)")
    cells = summary.batches.dropna(subset=["seconds"])
    for position, (architecture, rows) in enumerate(cells.groupby("architecture")):
        figure.add_trace(
            go.Scatter(
                x=_numbers(rows["seconds"]),
                y=_numbers(rows["auc"]),
                mode="markers",
                name=str(architecture),
                text=[f"{row.resolution} px, batch {row.batch}" for row in rows.itertuples()],
                marker={"symbol": _SYMBOLS[position % 5], "color": SERIES[position % 5][0], "size": 7, "opacity": 0.6},
            )
        )
    front = summary.front
    figure.add_trace(
        go.Scatter(
            x=_numbers(front["seconds"]),
            y=_numbers(front["auc"]),
            mode="lines+markers",
            name="Pareto front (no trial is better and cheaper)",
            text=[f"{row.resolution} px, {row.architecture}" for row in front.itertuples()],
            line={"color": "black", "shape": "hv"},
            marker={"symbol": "star", "size": 9},
        )
    )
    figure.update_xaxes(type="log", dtick="D2")
    return _with_chance(figure, [*_numbers(cells["auc"]), *_numbers(front["auc"])])


def _by_batch(label: str, summary: SearchSummary) -> go.Figure:
    figure = _figure(label, "Best validation AUC at each batch size", "Batch size (images, nearest power of two)")
    best = summary.batches.groupby(["resolution", "batch"])["auc"].max().reset_index()
    for position, (resolution, rows) in enumerate(best.groupby("resolution")):
        figure.add_trace(
            go.Scatter(
                x=[int(each) for each in rows["batch"]],
                y=_numbers(rows["auc"]),
                mode="lines+markers",
                name=f"{resolution} px",
                line={"color": SERIES[position % 5][0], "dash": _DASHES[(position + position // 5) % 5]},
                marker={"symbol": _SYMBOLS[(position + position // 5) % 5], "size": 8},
            )
        )
    ticks = sorted({int(each) for each in best["batch"]})
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(each) for each in ticks])
    return _with_chance(figure, _numbers(best["auc"]))


def _with_chance(figure: go.Figure, aucs: list[float]) -> go.Figure:
    """The figure with a line at an AUC of 0.5 where the AUCs come near it. The axis then includes the line."""
    if aucs and min(aucs) <= CHANCE + NEAR_CHANCE:
        figure.add_hline(CHANCE, line={"color": "black", "width": 1}, annotation={"text": "chance", "x": 1})
        low, high = min(*aucs, CHANCE), max(*aucs, CHANCE)
        figure.update_yaxes(range=[low - 0.02, high + 0.02])
    return figure


def _figure(label: str, title: str, x: str) -> go.Figure:
    """An empty figure. The title has two lines, which fit the width of a phone."""
    figure = go.Figure()
    figure.update_layout(
        template="none",  # Plotly's default template adds 7 KB to every figure
        title={"text": f"<b>{escape(label, quote=False)}</b><br>{title}", "font": {"size": 14}},
        legend={"orientation": "h", "yanchor": "top", "y": -0.22},
        margin={"t": 60, "b": 110, "l": 65, "r": 20},
    )
    figure.update_xaxes(title={"text": x}, gridcolor="#E6E6E6")
    figure.update_yaxes(title={"text": "AUC"}, gridcolor="#E6E6E6")
    return figure


def _numbers(values: Any) -> list[float]:
    """A list of rounded values, which keeps a figure at a few kilobytes and is readable by every dashboard version."""
    return [round(float(each), 5) for each in values]
