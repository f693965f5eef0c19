"""`acuity report`: one page that opens anywhere, the same in Markdown, and its figures for a paper."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from acuity.storage.confirmations import StoredConfirmation, find_confirmation
from acuity.storage.database import Database
from acuity.study.confirmation.protocol import read_protocol
from acuity.study.dataset.demographics import Cohort, read_cohort_here
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.report.auc_figure import auc_alt, auc_figure, auc_limits, auc_panel
from acuity.study.report.methods import Paragraph, write_methods
from acuity.study.report.rendering import render
from acuity.study.report.search_figures import (
    batch_figure,
    batch_panel,
    cost_figure,
    cost_panel,
    importance_figure,
    pruning_panel,
)
from acuity.study.report.style import figure_style, inline_svg
from acuity.study.results.answer import Answer, read_answer
from acuity.study.results.summary import ENOUGH_FOR_IMPORTANCE, PARAMETERS, SearchSummary, summarise_search


@dataclass(frozen=True, eq=False)
class ReportContents:
    """Everything that a report shows."""

    registered: Registered
    answer: Answer
    stored: StoredConfirmation | None
    summaries: list[SearchSummary]
    cohort: Cohort | None
    methods: list[Paragraph]


def write_report(database: Database, registered: Registered, out: Path) -> list[Path]:
    """Write report.html, report.md and figures/ (PDF and SVG) to the folder out; earlier ones are replaced."""
    contents = _gather(database, registered)
    written = []
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with figure_style():
            for name, draw in _figures(contents).items():
                figure = draw()
                for suffix in ("pdf", "svg"):
                    written.append(out / "figures" / f"{name}.{suffix}")
                    figure.savefig(written[-1], metadata=_metadata(registered, suffix))
            page = _render("report.html.jinja", contents, panels=_panels(contents))
        for name, text in (("report.html", page), ("report.md", _render("report.md.jinja", contents))):
            written.append(out / name)
            _replace(out / name, text)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; name another folder with --out") from None
    return written


def _gather(database: Database, registered: Registered) -> ReportContents:
    answer = read_answer(database, registered.experiment.name)
    stored = find_confirmation(database, registered.experiment.name)
    summaries = [summarise_search(database, registered, label) for label in registered.experiment.labels]
    if not any(each.complete for each in summaries):
        raise UsageError(
            f"{registered.experiment.name} has no complete trial yet, so there is nothing to report: `acuity launch` "
            "trains, `acuity status` looks"
        )
    cohort = read_cohort_here(registered)
    protocol = read_protocol(stored.protocol) if stored else None
    methods = write_methods(registered, answer, summaries, cohort, stored, protocol)
    return ReportContents(registered, answer, stored, summaries, cohort, methods)


def _figures(contents: ReportContents) -> dict[str, Callable[[], Figure]]:
    """Figures for a paper, by file name."""
    search, summaries = contents.registered.experiment.search, contents.summaries
    architectures, resolutions = search.architectures, search.resolutions
    drawn: dict[str, Callable[[], Figure]] = {
        "auc-by-resolution": lambda: auc_figure(contents.answer.labels),
        "batch-size": lambda: batch_figure(summaries, architectures=architectures, resolutions=resolutions),
        "pruning-and-cost": lambda: cost_figure(summaries),
    }
    if any(each.importance for each in summaries):
        drawn["importance"] = lambda: importance_figure(summaries, width=5.0)
    return drawn


def _panels(contents: ReportContents) -> dict[str, list[Markup]]:
    """Figures for the page: small enough for a phone, side by side where there is room."""
    labels, summaries = contents.answer.labels, contents.summaries
    search = contents.registered.experiment.search
    limits = auc_limits(labels)

    def panel(figure: Figure, alt: str) -> Markup:
        return Markup(inline_svg(figure, alt))

    return {
        "auc": [panel(auc_panel(each, limits=limits), auc_alt(each)) for each in labels],
        "batch": [
            panel(
                batch_panel(summaries, architecture, resolutions=search.resolutions),
                f"Batch sizes of {architecture} at each resolution: AUC lost against the label's best trial, and the "
                f"largest feasible batch: {_feasible(summaries, architecture)}.",
            )
            for architecture in search.architectures
        ],
        "importance": [panel(importance_figure(summaries), _importance_alt(summaries))]
        if any(each.importance for each in summaries)
        else [],
        "cost": [
            panel(
                pruning_panel(summaries), "Trials at each resolution, complete and pruned; the table has the numbers."
            ),
            panel(cost_panel(summaries), "Minutes of a complete training against resolution, a line an architecture."),
        ],
    }


def _render(template: str, contents: ReportContents, **more: Any) -> str:
    return render(
        template,
        filters={"brackets": _brackets},
        name=contents.registered.experiment.name,
        experiment=contents.registered.experiment,
        labels=contents.answer.labels,
        test_uses=contents.answer.test_uses,
        confirmed=contents.stored is not None,
        warnings=contents.answer.warnings,
        margin=contents.registered.experiment.confirm.margin,
        summaries=contents.summaries,
        cohort=contents.cohort,
        methods=contents.methods,
        parameters=PARAMETERS,
        enough=ENOUGH_FOR_IMPORTANCE,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=version("acuity-hpo"),
        **more,
    )


def _brackets(text: str) -> Markup:
    """Mark the [brackets], which hold what the author of the paper has to add."""
    return Markup(re.sub(r"\[[^\]]+\]", lambda found: f"<mark>{found[0]}</mark>", str(escape(text))))


def _feasible(summaries: list[SearchSummary], architecture: str) -> str:
    sizes: dict[int, int] = {}
    for each in summaries:
        for row in each.cells[each.cells["architecture"] == architecture].dropna(subset=["feasible"]).itertuples():
            sizes[int(row.resolution)] = max(int(row.feasible), sizes.get(int(row.resolution), 0))  # type: ignore[arg-type]
    return ", ".join(f"{size} at {resolution} px" for resolution, size in sorted(sizes.items()))


def _importance_alt(summaries: list[SearchSummary]) -> str:
    rows = [
        f"{each.label}: " + ", ".join(f"{PARAMETERS[name]} {share:.2f}" for name, share in each.importance.items())
        for each in summaries
        if each.importance
    ]
    return "Importance of each parameter. " + "; ".join(rows) + "."


def _metadata(registered: Registered, suffix: str) -> dict[str, Any]:
    if suffix == "svg":
        return {"Date": None, "Creator": f"acuity-hpo {version('acuity-hpo')}"}
    return {"CreationDate": None, "Title": registered.experiment.name, "Creator": f"acuity-hpo {version('acuity-hpo')}"}


def _replace(path: Path, text: str) -> None:
    """Replace the file in one step, so that a reader sees the old text or the new one."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
