"""How things are said at the terminal: where results go, bars, spans of time, bytes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from study.cost import Cost


def results_console() -> Console:
    """Standard output; in a file or a pipe tables may be wider than a narrow terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def messages_console() -> Console:
    """Standard error, likewise."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 120)


@contextmanager
def decoding_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar while images are decoded, on a terminal; what it yields is called with (images done, images in all)."""
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def scoring_bar(console: Console, networks: int) -> Iterator[Callable[[], None]]:
    """A bar while networks score images, on a terminal; what it yields is called after each network."""
    columns = (TextColumn("scoring networks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=networks)
        yield lambda: bars.advance(task)


def duration(seconds: float) -> str:
    """A time span as a person says it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes as a person says them."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def cost_line(cost: "Cost | None") -> str:
    """What is left to run, and for how long."""
    if cost is None:
        return "its hours are known once a trial at each resolution has run."
    if cost.trials == 0:
        return "every label has its trials."
    if cost.worker_hours is None:
        return f"{cost.trials:,} trials to run; the hours are known once a trial at each resolution has run."
    return f"{cost.trials:,} trials to run, at most {duration(3600 * cost.worker_hours)} of one worker's time."
