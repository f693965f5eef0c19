"""How things are said at the terminal: where results go, bars, spans of time, bytes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
