"""Consoles for results and messages, and progress bars on them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_WIDTH = 120
"""Width of a table in a file or a pipe."""


def results_console() -> Console:
    """Standard output."""
    return _console(stderr=False, width=None if sys.stdout.isatty() else _WIDTH)


def messages_console() -> Console:
    """Standard error."""
    return _console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH)


def _console(*, stderr: bool, width: int | None) -> Console:
    """A console that prints every text as it is: a label may look like Rich's markup ("[red]") or emoji (":x:")."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


@contextmanager
def decoding_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while images are decoded. Call the yielded function with (images done, images in all)."""
    with _bars(console, "decoding images") as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def scoring_bar(console: Console, networks: int) -> Iterator[Callable[[], None]]:
    """Show a bar while networks score images. Call the yielded function after each network."""
    with _bars(console, "scoring networks") as bars:
        task = bars.add_task("", total=networks)
        yield lambda: bars.advance(task)


def _bars(console: Console, words: str) -> Progress:
    """A bar that disappears at its end. Nothing is shown where the console is no terminal."""
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
