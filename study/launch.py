"""`acuity launch`: image set, registration, workers and live progress, from an experiment file to finished budgets."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from storage.database import Database
from storage.url import masked
from study.caveats import caveats
from study.cost import predict_cost
from study.disk import predict_disk
from study.experiment import Experiment
from study.fleet import place_workers, run_fleet
from study.image_set import open_image_set, training_images
from study.launches import start_in_background
from study.networks import check_networks
from study.progress import read_progress
from study.register import Registered, register
from study.running import EpochClock, read_running
from study.slurm import submit_workers, tell_submission
from study.tables import Pace, progress_line, progress_table
from study.terminal import cost_line, decoding_bar

_LINE_EVERY_S = 10.0
_READING_SHARE = 0.1
"""Of the time that reading the progress may take: over 100,000 trials it is a tenth of a second's work."""


def launch(
    database: Database,
    experiment: Experiment,
    *,
    storage_url: str | None,
    workers: int | None,
    device: str,
    console: Console,
    workers_per_gpu: int | None = None,
    in_background: list[str] | None = None,
    on_slurm: bool = False,
) -> Registered:
    """Run the experiment on this host until every label has its budget.

    workers: by default one a GPU, else two; with 0 the experiment is registered for workers that are started otherwise
    (`acuity worker`). in_background: arguments of the `acuity` that goes on by itself once everything is checked and
    prepared here. on_slurm: submit that many workers there, once it is, and return.
    """
    places = [] if workers == 0 or on_slurm else place_workers(device, workers=workers, workers_per_gpu=workers_per_gpu)
    count = (workers or 0) if on_slurm else len(places)
    check_networks(experiment)
    with decoding_bar(console) as progress:
        image_set = open_image_set(experiment, progress=progress)
    registered = register(
        database,
        experiment,
        index_sha256=image_set.index.sha256,
        split_sha256=image_set.split.sha256,
        training_images=training_images(image_set, experiment.labels),
    )
    budget = experiment.search.trials
    before = read_progress(database, experiment)
    missing = sum(max(0, budget - entry.finished) for entry in before)
    if missing == 0:
        console.print(f"Every label of {experiment.name} has its {budget} trials; raise search.trials for more.")
        return registered
    console.print(
        f"{experiment.name}: {len(experiment.labels)} labels, {cost_line(predict_cost(database, experiment))} "
        f"{count} worker{'s' if count > 1 else ''}, storage {masked(database.url)}",
        soft_wrap=True,
    )
    for warning in caveats(experiment):
        console.print(f"Warning: {warning}", soft_wrap=True, highlight=False)
    console.print(predict_disk(experiment, image_set, workers=count).line(), soft_wrap=True)
    if on_slurm:
        submission = submit_workers(experiment, storage=database.url, workers=count, device=device)
        tell_submission(experiment.name, submission, console)
        return registered
    if workers == 0:
        console.print(
            f"{experiment.name} is registered: `acuity worker {experiment.name}` runs its trials", soft_wrap=True
        )
        return registered
    if in_background is not None:
        process, log = start_in_background(experiment.name, in_background, storage_url=storage_url)
        console.print(
            f"{experiment.name} runs in the background (process {process}, log {log}): "
            f"`acuity status {experiment.name}` shows it, `acuity stop {experiment.name}` ends it",
            soft_wrap=True,
        )
        return registered
    pace = Pace(began=time.monotonic(), finished_before=sum(entry.finished for entry in before))
    images = training_images(image_set, experiment.labels)
    with _live(database, experiment, pace, console, images=images) as refresh:
        run_fleet(database, registered, places=places, storage_url=storage_url, refresh=refresh)
    return registered


@contextmanager
def _live(
    database: Database, experiment: Experiment, pace: Pace, console: Console, *, images: int
) -> Iterator[Callable[[int], None]]:
    """A table that redraws itself on a terminal, a line every ten seconds elsewhere. images: of an epoch."""
    budget = experiment.search.trials
    last_line = 0.0

    def line(alive: int) -> None:
        nonlocal last_line
        if alive and time.monotonic() - last_line < _LINE_EVERY_S:
            return
        last_line = time.monotonic()
        progress = read_progress(database, experiment)
        console.print(progress_line(progress, budget=budget, left=pace.left(progress, budget=budget)), soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    with Live(console=console, auto_refresh=False) as live:
        next_look, clock = 0.0, EpochClock()

        def redraw(alive: int) -> None:
            nonlocal next_look
            began = time.monotonic()
            if alive and began < next_look:
                return
            progress, running = read_progress(database, experiment), read_running(database, experiment)
            next_look = time.monotonic() + (time.monotonic() - began) / _READING_SHARE
            left = pace.left(progress, budget=budget)
            title = f"{experiment.name}: {alive} worker{'s' if alive != 1 else ''}, time left: {left}"
            paces = {(trial.label, trial.number): clock.epochs_per_second(trial) for trial in running}
            table = progress_table(
                progress,
                running,
                budget=budget,
                epochs=experiment.training.epochs,
                title=title,
                paces={trial: images * pace for trial, pace in paces.items() if pace is not None},
            )
            live.update(table, refresh=True)

        yield redraw
