"""Render the HTML page of a report with its figures, and the same report in Markdown."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from acuity.storage.confirmations import StoredConfirmation
from acuity.study.dataset.demographics import Demographics
from acuity.study.registry.record import Registered
from acuity.study.report.auc_figure import auc_alt, auc_limits, auc_panel, shows_chance
from acuity.study.report.batch_figure import batch_alt, batch_panel, cell_kinds
from acuity.study.report.cost_figure import cost_panel, pruning_panel
from acuity.study.report.importance_figure import importance_alt, importance_figure
from acuity.study.report.methods import Paragraph
from acuity.study.report.rendering import render
from acuity.study.report.style import inline_svg
from acuity.study.results.answer import Answer
from acuity.study.results.summary import PARAMETERS, RELIABLE_IMPORTANCE_TRIALS, SearchSummary


@dataclass(frozen=True, eq=False)
class ReportContents:
    """The content of a report."""

    registered: Registered
    answer: Answer
    stored: StoredConfirmation | None
    summaries: list[SearchSummary]
    cohort: Demographics | None
    methods: list[Paragraph]


def render_page(contents: ReportContents) -> str:
    """report.html: one file that opens without network access."""
    return _render("report.html.jinja", contents, panels=_panels(contents))


def render_markdown(contents: ReportContents) -> str:
    """report.md: the text and tables of the page, without figures."""
    return _render("report.md.jinja", contents)


def _panels(contents: ReportContents) -> dict[str, list[Markup]]:
    """The figures of the page, small enough for a phone."""
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
                batch_alt(summaries, architecture),
            )
            for architecture in search.architectures
        ],
        "importance": [panel(importance_figure(summaries), importance_alt(summaries))]
        if any(each.importance for each in summaries)
        else [],
        "cost": [
            panel(
                pruning_panel(summaries), "Trials at each resolution, complete and pruned; the table has the numbers."
            ),
            panel(
                cost_panel(summaries), "Minutes of a complete training against resolution, one line per architecture."
            ),
        ],
    }


def _render(template: str, contents: ReportContents, **more: Any) -> str:
    return render(
        template,
        filters={"brackets": _brackets},
        name=contents.registered.experiment.name,
        experiment=contents.registered.experiment,
        labels=contents.answer.labels,
        splits={at.split for each in contents.answer.labels for at in each.by_resolution if at.auc is not None},
        batch_cells=cell_kinds(
            contents.summaries,
            architectures=contents.registered.experiment.search.architectures,
            resolutions=contents.registered.experiment.search.resolutions,
        ),
        chance_shown=shows_chance(auc_limits(contents.answer.labels)),
        test_uses=contents.answer.test_uses,
        confirmed=contents.stored is not None,
        warnings=contents.answer.warnings,
        confirmed_labels=[each.label for each in contents.answer.labels if each.smallest_adequate is not None],
        searched_labels=[each.label for each in contents.answer.labels if each.smallest_adequate is None],
        summaries=contents.summaries,
        cohort=contents.cohort,
        methods=contents.methods,
        parameters=PARAMETERS,
        enough=RELIABLE_IMPORTANCE_TRIALS,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=version("acuity-hpo"),
        **more,
    )


def _brackets(text: str) -> Markup:
    """Highlight each text in [brackets], which the author of the paper has to replace."""
    return Markup(re.sub(r"\[[^\]]+\]", lambda found: f"<mark>{found[0]}</mark>", str(escape(text))))
