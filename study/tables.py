"""What a person sees at the terminal: progress while workers run, and the answer as a table."""

import time
from dataclasses import dataclass

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.answer import Answer, AtResolution, LabelAnswer
from study.progress import Progress
from study.terminal import duration


@dataclass
class Pace:
    """Estimates the time left from what has finished since the launch."""

    began: float
    finished_before: int

    def left(self, progress: list[Progress], *, budget: int) -> str:
        finished = sum(entry.finished for entry in progress)
        remaining = sum(max(0, budget - entry.finished) for entry in progress)
        since = finished - self.finished_before
        if remaining == 0:
            return "done"
        if since < 2:
            return "estimating"
        return f"about {duration(remaining * (time.monotonic() - self.began) / since)}"


def progress_table(progress: list[Progress], *, budget: int, title: str) -> Group:
    """A bar per label with its trials by state and the best AUC so far."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("label", "", "finished", "pruned", "running", "failed", "best AUC so far"):
        table.add_column(heading, justify="left" if heading in ("label", "") else "right")
    for entry in progress:
        table.add_row(
            Text(entry.label),
            ProgressBar(total=budget, completed=min(entry.finished, budget), width=24),
            f"{entry.finished}/{budget}",
            str(entry.pruned),
            str(entry.running),
            str(entry.failed),
            "" if entry.best_auc is None else f"{entry.best_auc:.3f}",
        )
    return Group(Text(title), table)


def progress_line(progress: list[Progress], *, budget: int, left: str) -> str:
    """The same in one line, for a log."""
    parts = [
        f"{entry.label} {entry.finished}/{budget}"
        + (f" AUC {entry.best_auc:.3f}" if entry.best_auc is not None else "")
        for entry in progress
    ]
    return f"{'; '.join(parts)}; time left: {left}"


def answer_table(answer: Answer) -> Group:
    """One table: a row per label with its best configuration, then the AUC at each resolution."""
    best = Table(box=None, pad_edge=False, header_style="bold")
    best.add_column("label")
    best.add_column("best px", justify="right")
    best.add_column("AUC", justify="right")
    best.add_column("architecture")
    best.add_column("batch/\nfeasible", justify="right")
    best.add_column("learning\nrate", justify="right")
    best.add_column("trials\n(pruned)", justify="right")
    for entry in answer.labels:
        best.add_row(*_best_row(entry))
    by_resolution = Table(box=None, pad_edge=False, header_style="bold")
    by_resolution.add_column("AUC (95 %) at")
    for at in answer.labels[0].by_resolution:
        by_resolution.add_column(f"{at.resolution} px", justify="right")
    for entry in answer.labels:
        by_resolution.add_row(Text(entry.label), *map(_auc_with_interval, entry.by_resolution))
    note = Text(
        "AUC on validation patients, on which these were chosen: optimistic, and no verdict on resolution.",
        style="italic",
    )
    return Group(best, Text(), by_resolution, Text(), note)


def _best_row(entry: LabelAnswer) -> list[Text | str]:
    complete, pruned = entry.trials["complete"], entry.trials["pruned"]
    trials = f"{complete + pruned} ({pruned})"
    if entry.best is None:
        return [Text(entry.label), "-", "-", "no complete trial yet", "", "", trials]
    best = entry.best
    return [
        Text(entry.label),
        str(best.resolution),
        f"{best.auc:.3f}",
        best.architecture,
        f"{best.batch_size}/{best.feasible_batch_size}",
        f"{best.learning_rate:.2g}",
        trials,
    ]


def _auc_with_interval(at: AtResolution) -> str:
    if at.auc is None or at.auc_low is None or at.auc_high is None:
        return "-"
    return f"{at.auc:.3f} ({at.auc_low:.2f}-{at.auc_high:.2f})".replace("0.", ".")
