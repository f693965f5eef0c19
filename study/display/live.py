"""The live progress of an experiment: a table that redraws itself on a terminal or in a notebook, else lines."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from acuity.storage.database import Database
from acuity.study.config.schema import Experiment
from acuity.study.display.notebook import NotebookOutput
from acuity.study.display.progress_table import progress_line, progress_table
from acuity.study.results.forecast import read_trial_seconds, time_left
from acuity.study.results.status import EpochRates, ExperimentStatus, read_status
from acuity.study.units import counted

_LINE_EVERY_S = 10.0
_TIMING_EVERY_S = 15.0
_READING_SHARE = 0.1
"""The share of time that reading the progress may take. One look at 100,000 trials takes 0.1 s."""


@contextmanager
def live_progress(
    database: Database, console: Console, *, images: int | None = None, rough: Mapping[int, float] | None = None
) -> Iterator["LiveProgress"]:
    """Show the progress during the block.

    images: images per epoch, for the speed of a trial. rough: estimated seconds of a trial by resolution, for the time
    left before the first trials have finished. None where unknown.
    """
    if console.is_jupyter:
        output = NotebookOutput(width=console.width)
        yield LiveProgress(database, console, output, images=images, rough=rough)
        return
    if not console.is_terminal:
        yield LiveProgress(database, console, None, images=images, rough=rough)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveProgress(database, console, live, images=images, rough=rough)


class LiveProgress:
    """Reads and shows the progress of an experiment. `live_progress` makes it."""

    def __init__(
        self,
        database: Database,
        console: Console,
        live: Live | NotebookOutput | None,
        *,
        images: int | None,
        rough: Mapping[int, float] | None,
    ) -> None:
        self._database, self._console, self._live, self._images = database, console, live, images
        self._rough, self._epoch_rates = rough or {}, EpochRates()
        self._trial_seconds: dict[int, float] = {}
        self._next_timing = 0.0
        self._next_look = 0.0
        self._shown = Group()

    def is_due(self) -> bool:
        """Whether the progress may be read again without exceeding the reading share."""
        return time.monotonic() >= self._next_look

    def look(self, experiment: Experiment, *, workers: int | None = None) -> ExperimentStatus:
        """Read and show the progress.

        workers: the number of running workers of a launch. With None the number of running trials is shown instead.
        """
        began = time.monotonic()
        status = read_status(self._database, experiment)
        pause = (time.monotonic() - began) / _READING_SHARE
        self._next_look = time.monotonic() + (pause if self._live else max(pause, _LINE_EVERY_S))
        running = len(status.running) if workers is None else workers
        left = time_left(status, self._read_trial_seconds(experiment), rough=self._rough, workers=running)
        activity = _activity(status, workers=workers, time_left=left)
        if self._live is None:
            self._console.print(f"{progress_line(status)}; {activity}", soft_wrap=True)
            return status
        self._shown = progress_table(
            status, title=f"{experiment.name}: {activity}", images_per_second=self._images_per_second(status)
        )
        self._live.update(self._shown, refresh=True)
        return status

    def refresh(self, experiment: Experiment, workers: int) -> None:
        """Read and show the progress if the next look is due, or if no worker runs any more."""
        if self.is_due() or not workers:
            self.look(experiment, workers=workers)

    def show_message(self, text: str) -> None:
        """Show a text below the table until the next look. Where the console is no terminal, print a line."""
        if self._live is None:
            self._console.print(text, soft_wrap=True, highlight=False)
        else:
            self._live.update(Group(self._shown, Text(), Text(text)), refresh=True)

    def _read_trial_seconds(self, experiment: Experiment) -> dict[int, float]:
        """Mean durations of trials, at most _TIMING_EVERY_S old: this reads every trial."""
        if time.monotonic() >= self._next_timing:
            self._trial_seconds = read_trial_seconds(self._database, experiment)
            self._next_timing = time.monotonic() + _TIMING_EVERY_S
        return self._trial_seconds

    def _images_per_second(self, status: ExperimentStatus) -> dict[tuple[str, int], float] | None:
        """Speed by label and trial number. A trial without a known speed is absent."""
        rates = {(trial.label, trial.number): self._epoch_rates.epochs_per_second(trial) for trial in status.running}
        if not self._images:
            return None
        return {trial: self._images * rate for trial, rate in rates.items() if rate}


def _activity(status: ExperimentStatus, *, workers: int | None, time_left: str) -> str:
    """The number of workers or running trials, and the time left."""
    if not status.remaining and not status.running:
        return "done"
    if not workers and not status.running:
        return "no trial runs now"
    count, noun = (workers, "worker") if workers is not None else (len(status.running), "running trial")
    return f"{counted(count, noun)}, time left: {time_left}"
