"""The live progress of an experiment: a table that redraws itself on a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from acuity.storage.database import Database
from acuity.study.config.schema import Experiment
from acuity.study.display.progress_table import Pace, progress_line, progress_table
from acuity.study.results.status import EpochClock, ExperimentStatus, read_status

_LINE_EVERY_S = 10.0
_READING_SHARE = 0.1
"""The share of time that reading the progress may take: 0.1 s per look at 100,000 trials."""


class LiveProgress:
    """Reads and shows the progress, at most as often as the reading share permits; made by `live_progress`."""

    def __init__(self, database: Database, console: Console, live: Live | None, *, images: int | None) -> None:
        self._database, self._console, self._live, self._images = database, console, live, images
        self._pace, self._clock = Pace(), EpochClock()
        self._next_look = 0.0
        self._shown = Group()

    def is_due(self) -> bool:
        """Whether the last look was long enough ago."""
        return time.monotonic() >= self._next_look

    def look(self, experiment: Experiment, *, workers: int | None = None) -> ExperimentStatus:
        """Read and show how far the experiment is.

        workers: the running workers of a launch; with None the running trials are counted instead.
        """
        began = time.monotonic()
        status = read_status(self._database, experiment)
        pause = (time.monotonic() - began) / _READING_SHARE
        self._next_look = time.monotonic() + (pause if self._live else max(pause, _LINE_EVERY_S))
        left = self._pace.left(finished=status.finished, remaining=status.remaining)
        doing = _doing(status, workers=workers, left=left)
        if self._live is None:
            self._console.print(f"{progress_line(status)}; {doing}", soft_wrap=True)
            return status
        paces = {(trial.label, trial.number): self._clock.epochs_per_second(trial) for trial in status.running}
        self._shown = progress_table(
            status,
            title=f"{experiment.name}: {doing}",
            paces={trial: self._images * pace for trial, pace in paces.items() if pace} if self._images else None,
        )
        self._live.update(self._shown, refresh=True)
        return status

    def remark(self, text: str) -> None:
        """Show a text below the table until the next look; elsewhere than on a terminal print it as a line."""
        if self._live is None:
            self._console.print(text, soft_wrap=True, highlight=False)
        else:
            self._live.update(Group(self._shown, Text(), Text(text)), refresh=True)


@contextmanager
def live_progress(database: Database, console: Console, *, images: int | None = None) -> Iterator[LiveProgress]:
    """Show the progress during the block. images: the number per epoch, for a trial's speed; None where unknown."""
    if not console.is_terminal:
        yield LiveProgress(database, console, None, images=images)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveProgress(database, console, live, images=images)


def _doing(status: ExperimentStatus, *, workers: int | None, left: str) -> str:
    if not status.remaining and not status.running:
        return "done"
    if not workers and not status.running:
        return "no trial runs now"
    number, what = (workers, "worker") if workers is not None else (len(status.running), "running trial")
    return f"{number} {what}{'s' if number != 1 else ''}, time left: {left}"
