"""`acuity launch`: prepare the image set, register the experiment, start workers and show their progress."""

from collections.abc import Mapping
from functools import partial

from rich.console import Console

from acuity.storage.database import Database
from acuity.storage.url import storage_words
from acuity.study.config.caveats import caveats, with_found_format
from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import ImageSet, training_images
from acuity.study.display.console import decoding_bar
from acuity.study.display.live import live_progress
from acuity.study.fleet.launches import start_in_background
from acuity.study.fleet.placement import FleetOptions, Placement, place_workers
from acuity.study.fleet.slurm import print_submission, submit_workers
from acuity.study.fleet.supervisor import run_fleet
from acuity.study.prepare import estimate_trials, prepare_images
from acuity.study.registry.record import Registered
from acuity.study.registry.register import register
from acuity.study.results.forecast import CostForecast, forecast_cost, forecast_disk
from acuity.study.search.history import check_learn_from, count_learnt
from acuity.study.tracking.trackers import check_trackers
from acuity.study.units import counted


def launch(
    database: Database,
    experiment: Experiment,
    fleet: FleetOptions,
    *,
    console: Console,
    in_background: list[str] | None = None,
) -> Registered:
    """Run the experiment until every label has its budget of trials.

    Checks and prepares everything on this host first. Returns at once in three cases: the workers run on a cluster, the
    fleet has no workers (`acuity worker` starts them), or in_background is given. in_background: arguments of the
    `acuity` that runs the experiment in the background.
    """
    placements = place_workers(fleet)
    check_learn_from(database, experiment)
    check_trackers(experiment)
    with decoding_bar(console) as progress:
        image_set = prepare_images(experiment, progress=progress)
    experiment = with_found_format(experiment, image_set.index.format_name)
    images = training_images(image_set, experiment.labels)
    registered = register(database, experiment, image_set.identity, training_images=images)
    rough: dict[int, float] = {}

    def estimate() -> dict[int, float]:
        rough.update(estimate_trials(experiment, image_set))
        return rough

    # On a cluster or on other hosts the networks run at another speed.
    cost = forecast_cost(database, experiment, estimate if placements else dict)
    if cost.trials == 0:
        budget = experiment.search.trials
        console.print(
            f"Every label of {experiment.name} has its {counted(budget, 'trial')}; raise search.trials for more."
        )
        return registered
    workers = len(placements) or fleet.workers or 0
    _print_forecast(database, registered, image_set, cost, workers=workers, console=console)
    if fleet.cluster is not None:
        submission = submit_workers(
            experiment, storage=database.url, workers=workers, device=fleet.device, per_gpu=fleet.per_gpu
        )
        print_submission(experiment.name, submission, console)
    elif not placements:
        _print(console, f"{experiment.name} is registered: `acuity worker {experiment.name}` runs its trials")
    elif in_background is not None:
        _start_in_background(database, experiment, in_background, console)
    else:
        _run_here(database, registered, placements, console, images=images, rough=rough)
    return registered


def _print_forecast(
    database: Database,
    registered: Registered,
    image_set: ImageSet,
    cost: CostForecast,
    *,
    workers: int,
    console: Console,
) -> None:
    """The remaining trials, their time and disk space, the storage, and the experiment's warnings."""
    experiment = registered.experiment
    console.print(
        f"{experiment.name}: {counted(len(experiment.labels), 'label')}, {cost.line()} "
        f"{counted(workers, 'worker')}, storage {storage_words(database.url)}",
        soft_wrap=True,
    )
    for name, trials in count_learnt(database, experiment, registered.exponents).items():
        _print(console, f"Its first trials learn from {counted(trials, 'trial')} of {name}.")
    for warning in caveats(experiment):
        _print(console, f"Warning: {warning}")
    console.print(forecast_disk(experiment, image_set, workers=workers).line(), soft_wrap=True)


def _start_in_background(database: Database, experiment: Experiment, arguments: list[str], console: Console) -> None:
    process, log = start_in_background(experiment.name, arguments, environment=database.environment())
    _print(
        console,
        f"{experiment.name} runs in the background (process {process}, log {log}): "
        f"`acuity status {experiment.name}` shows it, `acuity stop {experiment.name}` ends it",
    )


def _run_here(
    database: Database,
    registered: Registered,
    placements: list[Placement],
    console: Console,
    *,
    images: int,
    rough: Mapping[int, float],
) -> None:
    """Run the workers on this host and show their progress until every label has its budget of trials."""
    with live_progress(database, console, images=images, rough=rough) as live:
        refresh = partial(live.refresh, registered.experiment)
        run_fleet(database, registered, placements=placements, refresh=refresh, say=live.show_message)


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
