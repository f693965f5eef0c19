"""Figures of AUC against resolution, one panel per label."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from acuity.objectives.statistics.intervals import CHANCE
from acuity.study.colours import BLUE, GREEN, GREY, ORANGE
from acuity.study.report.style import ReportFigure, in_lines
from acuity.study.results.answer import LabelAnswer, ResolutionAnswer
from acuity.study.results.doubts import NEAR_CHANCE

_CLOSE = 0.13
"""Smallest distance of two tick labels, as a fraction of the axis; closer ones are left out."""


def auc_figure(entries: tuple[LabelAnswer, ...], *, columns: int = 3) -> Figure:
    """One figure of all labels for a paper, 7.2 inches wide."""
    columns = min(columns, len(entries))
    rows = -(-len(entries) // columns)
    figure = ReportFigure(figsize=(7.2 if columns > 1 else 3.6, 2.15 * rows + 0.35))
    limits = auc_limits(entries)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, entry in zip(axes, entries, strict=False):
        draw_auc(axis, entry, limits=limits)
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    for position, axis in enumerate(axes[: len(entries)]):
        if position % columns:
            axis.set_ylabel("")
        if position + columns < len(entries):
            axis.set_xlabel("")
    handles = _legend(entries, chance=shows_chance(limits))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def auc_panel(entry: LabelAnswer, *, limits: tuple[float, float]) -> Figure:
    """One figure of a label for the page, small enough for a phone."""
    figure = Figure(figsize=(3.5, 2.5))
    draw_auc(figure.subplots(), entry, limits=limits)
    return figure


def auc_limits(entries: tuple[LabelAnswer, ...]) -> tuple[float, float]:
    """Limits of the AUC axis, the same for all labels, so the panels are comparable. They include a near 0.5."""
    shown = [value for entry in entries for at in entry.by_resolution for value in (at.auc_low, at.auc_high)]
    known = [value for value in shown if value is not None]
    seeds = [auc for entry in entries for each in _tested(entry).values() for auc in each.get("seed_aucs", [])]
    low, high = min([*known, *seeds], default=0.5), max([*known, *seeds], default=1.0)
    if CHANCE < low <= CHANCE + NEAR_CHANCE:
        low = CHANCE
    high = max(high, CHANCE)
    return max(0.0, low - 0.03), min(1.01, high + 0.03)


def shows_chance(limits: tuple[float, float]) -> bool:
    """Whether the axis contains an AUC of 0.5, so that the figures have a line there."""
    return limits[0] <= CHANCE <= limits[1]


def draw_auc(axis: Axes, entry: LabelAnswer, *, limits: tuple[float, float]) -> None:
    """Draw test AUCs with intervals and seeds (filled) and the optimistic validation AUCs of the search (hollow)."""
    tested = _tested(entry)
    for split, colour, marker, face in (("validation", ORANGE, "s", "white"), ("test", BLUE, "o", BLUE)):
        _draw_points(axis, entry, split, colour=colour, marker=marker, face=face)
    for resolution, each in tested.items():
        seeds = each.get("seed_aucs", [])
        axis.plot([resolution * 1.07] * len(seeds), seeds, ".", color=GREY, markersize=4, zorder=4)
    if entry.reference is not None:
        _draw_verdict(axis, entry, limits)
    if not any(at.auc is not None for at in entry.by_resolution):
        axis.text(0.5, 0.5, "no complete trial yet", transform=axis.transAxes, ha="center", color=GREY)
    axis.set_title(in_lines(entry.label, 30))
    axis.set_xscale("log", base=2)
    resolutions = [at.resolution for at in entry.by_resolution]
    axis.set_xlim(min(resolutions) / 1.15, max(resolutions) * 1.2)
    axis.xaxis.set_major_locator(FixedLocator(_ticks(resolutions)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.set_ylim(*limits)
    if shows_chance(limits):
        axis.axhline(CHANCE, color="black", linewidth=0.7, zorder=1)
    axis.set_xlabel("Image resolution (px)")
    axis.set_ylabel("AUC")
    axis.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)


def _draw_points(axis: Axes, entry: LabelAnswer, split: str, *, colour: str, marker: str, face: str) -> None:
    points = [at for at in entry.by_resolution if at.split == split and at.auc is not None]
    if not points:
        return
    x, y = [at.resolution for at in points], [at.auc or 0.0 for at in points]
    below = [value - (at.auc_low or value) for value, at in zip(y, points, strict=True)]
    above = [(at.auc_high or value) - value for value, at in zip(y, points, strict=True)]
    axis.errorbar(
        x,
        y,
        yerr=[below, above],
        color=colour,
        marker=marker,
        markerfacecolor=face,
        linestyle="-" if split == "test" else (0, (4, 2)),
        elinewidth=0.9,
        capsize=2.2,
        zorder=3,
    )


def _draw_verdict(axis: Axes, entry: LabelAnswer, limits: tuple[float, float]) -> None:
    """Draw the reference, the line of the margin below it, and the smallest adequate resolution."""
    assert entry.reference is not None
    assert entry.smallest_adequate is not None
    reference, verdict = entry.reference, entry.smallest_adequate
    axis.axhline(reference["auc"] - verdict["margin"], color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.9, zorder=1)
    axis.plot([reference["resolution"]], [reference["auc"]], "o", color=BLUE, fillstyle="none", markersize=9, zorder=4)
    if verdict["verdict"] == "shown":
        axis.axvline(verdict["resolution"], color=GREEN, linewidth=5, alpha=0.22, zorder=0)
        axis.plot([verdict["resolution"]], [limits[0]], "^", color=GREEN, markersize=6.5, clip_on=False, zorder=5)


def _tested(entry: LabelAnswer) -> dict[int, dict[str, Any]]:
    return (
        {} if entry.confirmation is None else {each["resolution"]: each for each in entry.confirmation["by_resolution"]}
    )


def _ticks(resolutions: list[int]) -> list[int]:
    """The resolutions to label so that labels do not overlap on a logarithmic axis. The largest is always labelled."""
    span, kept = max(resolutions) / min(resolutions), [max(resolutions)]
    for resolution in sorted(resolutions)[-2::-1]:
        if span == 1 or (kept[-1] / resolution) >= span**_CLOSE:
            kept.append(resolution)
    return kept[::-1]


def _legend(entries: tuple[LabelAnswer, ...], *, chance: bool) -> list[Line2D]:
    confirmed = any(entry.reference is not None for entry in entries)
    searched = any(at.split == "validation" and at.auc is not None for each in entries for at in each.by_resolution)
    handles = []
    if confirmed:
        handles += [
            Line2D([], [], color=BLUE, marker="o", label="Test patients, mean of networks (95 % CI)"),
            Line2D([], [], color=BLUE, marker="o", fillstyle="none", linestyle="none", markersize=9, label="Reference"),
            Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), label="Reference less margin"),
        ]
        if any(at.get("seed_aucs") for each in entries for at in _tested(each).values()):
            handles.append(
                Line2D([], [], color=GREY, marker=".", linestyle="none", markersize=4, label="Single networks")
            )
        if any((each.smallest_adequate or {}).get("verdict") == "shown" for each in entries):
            style: dict[str, Any] = {"color": GREEN, "marker": "^", "linestyle": "none", "markersize": 6.5}
            handles.append(Line2D([], [], label="Smallest adequate resolution", **style))
    if chance:
        handles.append(Line2D([], [], color="black", linewidth=0.7, label="Chance"))
    if searched:
        handles.append(
            Line2D(
                [],
                [],
                color=ORANGE,
                marker="s",
                markerfacecolor="white",
                linestyle=(0, (4, 2)),
                label="Search, validation patients (optimistic)",
            )
        )
    return handles


def auc_alt(entry: LabelAnswer) -> str:
    """The panel in words."""
    points = "; ".join(_point(at) for at in entry.by_resolution if at.auc is not None)
    return f"AUC of {entry.label} against image resolution. {points or 'No complete trial yet'}."


def _point(at: ResolutionAnswer) -> str:
    return f"{at.resolution} px {at.auc:.3f} ({at.auc_low:.3f} to {at.auc_high:.3f}, {at.split})"
