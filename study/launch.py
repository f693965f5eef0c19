"""`acuity launch`: image set, registration, workers and live progress, from an experiment file to finished budgets."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from storage.database import Database
from storage.url import masked
from study.cost import predict_cost
from study.experiment import Experiment
from study.fleet import place_workers, run_fleet
from study.image_set import open_image_set, training_images
from study.networks import check_networks
from study.progress import read_progress
from study.register import Registered, register
from study.tables import Pace, progress_line, progress_table
from study.terminal import cost_line, decoding_bar

_LINE_EVERY_S = 10.0


def launch(
    database: Database,
    experiment: Experiment,
    *,
    storage_url: str | None,
    workers: int | None,
    device: str,
    console: Console,
    workers_per_gpu: int | None = None,
) -> Registered:
    """Run the experiment on this host until every label has its budget.

    workers: by default one a GPU, else two.
    """
    places = place_workers(device, workers=workers, workers_per_gpu=workers_per_gpu)
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
        f"{len(places)} worker{'s' if len(places) > 1 else ''}, storage {masked(database.url)}",
        soft_wrap=True,
    )
    pace = Pace(began=time.monotonic(), finished_before=sum(entry.finished for entry in before))
    with _live(database, experiment, pace, console) as refresh:
        run_fleet(database, registered, places=places, storage_url=storage_url, refresh=refresh)
    return registered


@contextmanager
def _live(database: Database, experiment: Experiment, pace: Pace, console: Console) -> Iterator[Callable[[int], None]]:
    """A table that redraws itself on a terminal, a line every ten seconds elsewhere."""
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

        def redraw(alive: int) -> None:
            progress = read_progress(database, experiment)
            left = pace.left(progress, budget=budget)
            title = f"{experiment.name}: {alive} worker{'s' if alive != 1 else ''}, time left: {left}"
            live.update(progress_table(progress, budget=budget, title=title), refresh=True)

        yield redraw
