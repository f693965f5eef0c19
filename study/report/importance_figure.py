"""Figure of the importance of each parameter, one row per label."""

from matplotlib.figure import Figure

from acuity.study.report.style import in_lines, series
from acuity.study.results.summary import PARAMETERS, SearchSummary


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


def importance_alt(summaries: list[SearchSummary]) -> str:
    """The figure in words."""
    rows = [
        f"{each.label}: " + ", ".join(f"{PARAMETERS[name]} {share:.2f}" for name, share in each.importance.items())
        for each in summaries
        if each.importance
    ]
    return "Importance of each parameter. " + "; ".join(rows) + "."
