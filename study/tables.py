"""What a person sees at the terminal while workers run."""

import time
from dataclasses import dataclass

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
