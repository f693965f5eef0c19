"""Consoles for results and messages, and progress bars on them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from acuity.study.display.notebook import NotebookOutput

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
    with _bar(console, "decoding images", total=None) as update:
        yield lambda done, total: update(completed=done, total=total)


@contextmanager
def scoring_bar(console: Console, networks: int) -> Iterator[Callable[[], None]]:
    """Show a bar while networks score images. Call the yielded function after each network."""
    with _bar(console, "scoring networks", total=networks) as update:
        yield lambda: update(advance=1)


@contextmanager
def _bar(console: Console, words: str, *, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar that disappears at its end, on a terminal or in a notebook. Nothing is shown elsewhere.

    The yielded function takes the arguments of `Progress.update` after the task.
    """
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total)
        if not console.is_jupyter:
            yield partial(bars.update, task)
            return
        output = NotebookOutput(width=console.width)

        def update(**changes: float) -> None:
            bars.update(task, **changes)  # type: ignore[arg-type]  # Progress has a type for each name
            output.update(bars.get_renderable(), refresh=False)

        yield update
        output.clear()
