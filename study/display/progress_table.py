"""Tables of an experiment's progress, for the terminal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from acuity.study.results.status import ExperimentStatus, Retraining, Running
from acuity.study.units import format_duration

_MOST_ROWS = 24


@dataclass
class Pace:
    """Estimates the time left from the trials that finished since the first call of `left`."""

    began: float = 0.0
    finished_before: int | None = None

    def left(self, *, finished: int, remaining: int) -> str:
        if self.finished_before is None:
            self.began, self.finished_before = time.monotonic(), finished
        since = finished - self.finished_before
        if remaining == 0:
            return "done"
        if since < 2:
            return "estimating"
        return f"about {format_duration(remaining * (time.monotonic() - self.began) / since)}"


def progress_table(
    status: ExperimentStatus, *, title: str, paces: Mapping[tuple[str, int], float] | None = None
) -> Group:
    """A row per label with its trials by state and its best AUC so far. Below it, the running trials.

    paces: images/s by label and trial number. None leaves the column out.
    """
    budget, epochs = status.experiment.search.trials, status.experiment.training.epochs
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("label", "", "finished", "pruned", "running", "failed", "best AUC so far"):
        table.add_column(heading, justify="left" if heading in ("label", "") else "right")
    for entry in status.progress:
        table.add_row(
            Text(entry.label),
            ProgressBar(total=budget, completed=min(entry.finished, budget), width=24),
            f"{entry.finished}/{budget}",
            str(entry.pruned),
            str(entry.running),
            str(entry.failed),
            "" if entry.best_auc is None else f"{entry.best_auc:.3f}",
        )
    parts: list[RenderableType] = [Text(title), table]
    if status.retraining:
        parts += [Text(), _retraining_table(status.retraining)]
    if status.running:
        parts += [Text(), _running_table(status.running, epochs=epochs, paces=paces)]
    return Group(*parts)


def _retraining_table(retraining: Sequence[Retraining]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("confirmation", "", "retrained", "running"):
        table.add_column(heading, justify="left" if heading in ("confirmation", "") else "right")
    for entry in retraining:
        table.add_row(
            Text(entry.label),
            ProgressBar(total=entry.planned, completed=entry.complete, width=24),
            f"{entry.complete}/{entry.planned}",
            str(entry.running),
        )
    return table


def _running_table(running: list[Running], *, epochs: int, paces: Mapping[tuple[str, int], float] | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    speed = ["images/s"] if paces is not None else []
    for heading in ("trial", "px", "architecture", "epoch", "AUC", *speed, "device", "last heartbeat"):
        table.add_column(heading, justify="left" if heading in ("trial", "architecture", "device") else "right")
    for trial in running[:_MOST_ROWS]:
        table.add_row(
            Text(f"{trial.label} {trial.number}"),
            _number(trial.resolution, "d"),
            trial.architecture or "",
            f"{trial.epoch}/{epochs}",
            _number(trial.auc, ".3f"),
            *([_number(paces.get((trial.label, trial.number)), ",.0f")] if paces is not None else []),
            trial.device or "",
            "" if trial.heartbeat_age_s is None else f"{format_duration(max(0.0, trial.heartbeat_age_s))} ago",
        )
    if len(running) > _MOST_ROWS:
        table.add_row(f"and {len(running) - _MOST_ROWS} more")
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def progress_line(status: ExperimentStatus) -> str:
    """The progress in one line, for a log."""
    parts = [
        f"{entry.label} {entry.finished}/{status.experiment.search.trials}"
        + (f" AUC {entry.best_auc:.3f}" if entry.best_auc is not None else "")
        for entry in status.progress
    ]
    parts += [f"{entry.label} retrained {entry.complete}/{entry.planned}" for entry in status.retraining]
    return "; ".join(parts)
