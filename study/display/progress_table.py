"""Terminal tables of an experiment's progress."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from acuity.study.display.plain_table import plain_table
from acuity.study.results.status import ConfirmationProgress, ExperimentStatus, RunningTrial
from acuity.study.units import format_age

if TYPE_CHECKING:
    from pandas import DataFrame

_MAX_ROWS = 24
"""Running trials that the table shows."""


def progress_table(
    status: ExperimentStatus, *, title: str, images_per_second: Mapping[tuple[str, int], float] | None = None
) -> Group:
    """A row per label with its trials by state and its best AUC so far. Below it, the running trials.

    images_per_second: by label and trial number. None leaves the column out.
    """
    budget, epochs = status.experiment.search.trials, status.experiment.training.epochs
    table = plain_table("label", "", "finished", "pruned", "running", "failed", "best AUC so far", text=("",))
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
    if status.confirmation:
        parts += [Text(), _retraining_table(status.confirmation)]
    if status.running:
        parts += [Text(), _running_table(status.running, epochs=epochs, images_per_second=images_per_second)]
    return Group(*parts)


def experiments_table(experiments: "DataFrame") -> Table:
    """One row per experiment, from `read_experiments`."""
    import pandas as pd

    table = plain_table("experiment", "labels", "trials", "running", "state", "last sign of life", text=("state",))
    now = pd.Timestamp.now("UTC")
    for row in experiments.to_dict("records"):
        last = row["last_sign"]
        age = "" if pd.isna(last) else format_age((now - last).total_seconds())
        table.add_row(
            Text(row["experiment"]),
            str(row["labels"]),
            f"{row['finished']}/{row['trials']}",
            str(row["running"]),
            row["state"],
            age,
        )
    return table


def progress_line(status: ExperimentStatus) -> str:
    """The progress in one line, for a log."""
    parts = [
        f"{entry.label} {entry.finished}/{status.experiment.search.trials}"
        + (f" AUC {entry.best_auc:.3f}" if entry.best_auc is not None else "")
        for entry in status.progress
    ]
    parts += [f"{entry.label} retrained {entry.complete}/{entry.planned}" for entry in status.confirmation]
    return "; ".join(parts)


def _retraining_table(retraining: Sequence[ConfirmationProgress]) -> Table:
    table = plain_table("confirmation", "", "retrained", "running", text=("",))
    for entry in retraining:
        table.add_row(
            Text(entry.label),
            ProgressBar(total=entry.planned, completed=entry.complete, width=24),
            f"{entry.complete}/{entry.planned}",
            str(entry.running),
        )
    return table


def _running_table(
    running: Sequence[RunningTrial], *, epochs: int, images_per_second: Mapping[tuple[str, int], float] | None
) -> Table:
    speed_heading = [] if images_per_second is None else ["images/s"]
    table = plain_table(
        "trial", "px", "architecture", "epoch", "AUC", *speed_heading, "device", "last heartbeat",
        text=("architecture", "device"),
    )  # fmt: skip
    for trial in running[:_MAX_ROWS]:
        key = (trial.label, trial.number)
        speed = [] if images_per_second is None else [_number(images_per_second.get(key), ",.0f")]
        table.add_row(
            Text(f"{trial.label} {trial.number}"),
            _number(trial.resolution, "d"),
            trial.architecture or "",
            f"{trial.epoch}/{epochs}",
            _number(trial.auc, ".3f"),
            *speed,
            trial.device or "",
            "" if trial.heartbeat_age_s is None else format_age(trial.heartbeat_age_s),
        )
    if len(running) > _MAX_ROWS:
        table.add_row(f"and {len(running) - _MAX_ROWS} more")
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
