"""`acuity report`: write an HTML page, the same report in Markdown, and figures for a paper."""

import io
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from acuity.objectives.atomic_write import write_atomically
from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database
from acuity.study.confirmation.protocol import read_protocol
from acuity.study.dataset.demographics import read_demographics
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.report.auc_figure import auc_figure
from acuity.study.report.batch_figure import batch_figure
from acuity.study.report.cost_figure import cost_figure
from acuity.study.report.importance_figure import importance_figure
from acuity.study.report.methods import write_methods
from acuity.study.report.page import ReportContents, render_markdown, render_page
from acuity.study.report.style import figure_style
from acuity.study.results.answer import read_answer
from acuity.study.results.summary import summarise_search

_FORMATS = ("pdf", "svg", "png")
_DPI = 600
"""Resolution of the PNG files, as journals ask for line art."""


def write_report(database: Database, registered: Registered, out: Path) -> list[Path]:
    """Write report.html, report.md and figures/ (PDF, SVG and PNG) to the folder out; returns the paths.

    Replaces an earlier report. UsageError where there is no complete trial or the folder cannot be written.
    """
    contents = _gather(database, registered)
    written = []
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with figure_style():
            for name, draw in _figures(contents).items():
                figure = draw()
                for suffix in _FORMATS:
                    drawn = io.BytesIO()
                    figure.savefig(drawn, format=suffix, dpi=_DPI, metadata=_metadata(registered, suffix))
                    written.append(out / "figures" / f"{name}.{suffix}")
                    write_atomically(written[-1], drawn.getvalue())
            page = render_page(contents)
        for name, text in (("report.html", page), ("report.md", render_markdown(contents))):
            written.append(out / name)
            write_atomically(out / name, text.encode())
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; name another folder with --out") from None
    return written


def _gather(database: Database, registered: Registered) -> ReportContents:
    answer = read_answer(database, registered.experiment.name)
    stored = find_confirmation(database, registered.experiment.name)
    summaries = [summarise_search(database, registered, label) for label in registered.experiment.labels]
    if not any(each.complete for each in summaries):
        raise UsageError(
            f"{registered.experiment.name} has no complete trial yet, so there is nothing to report: start `acuity "
            "launch`; `acuity status` shows its progress"
        )
    cohort = read_demographics(registered)
    protocol = read_protocol(stored.protocol) if stored else None
    methods = write_methods(registered, answer, summaries, cohort, stored, protocol)
    return ReportContents(registered, answer, stored, summaries, cohort, methods)


def _figures(contents: ReportContents) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures for a paper, by file name."""
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


def _metadata(registered: Registered, suffix: str) -> dict[str, Any]:
    if suffix == "svg":
        return {"Date": None, "Creator": f"acuity-hpo {version('acuity-hpo')}"}
    program = f"acuity-hpo {version('acuity-hpo')}"
    if suffix == "png":
        return {"Title": registered.experiment.name, "Software": program}
    return {"CreationDate": None, "Title": registered.experiment.name, "Creator": program}
