"""`acuity launch`: prepare the image set, register the experiment, start workers and show their progress."""

from rich.console import Console

from acuity.storage.database import Database
from acuity.storage.experiments import find_experiment
from acuity.storage.url import masked
from acuity.study.config.schema import Experiment, caveats
from acuity.study.dataset.image_set import fewest_training_images, open_image_set, training_images
from acuity.study.display.console import decoding_bar
from acuity.study.display.live import live_progress
from acuity.study.fleet.launches import start_in_background
from acuity.study.fleet.slurm import print_submission, submit_workers
from acuity.study.fleet.supervisor import FleetOptions, place_workers, run_fleet
from acuity.study.prepare import check_networks
from acuity.study.registry.progress import read_progress
from acuity.study.registry.record import Registered
from acuity.study.registry.register import register
from acuity.study.results.forecast import cost_line, predict_cost, predict_disk
from acuity.study.search.history import check_learn_from, count_learnt
from acuity.study.search.space import check_fixed_batch


def launch(
    database: Database,
    experiment: Experiment,
    fleet: FleetOptions,
    *,
    console: Console,
    in_background: list[str] | None = None,
) -> Registered:
    """Run the experiment until every label has its budget of trials.

    Checks and prepares everything on this host first. Then it returns at once where the workers run on a cluster,
    where the fleet has no workers (`acuity worker` starts them), and with in_background: the arguments of the `acuity`
    that runs the experiment in the background.
    """
    places = place_workers(fleet)
    count = len(places) or fleet.workers or 0
    check_networks(experiment)
    check_learn_from(database, experiment)
    with decoding_bar(console) as progress:
        image_set = open_image_set(experiment, progress=progress)
    if find_experiment(database, experiment.name) is None:
        check_fixed_batch(experiment, fewest_training_images(image_set, experiment.labels))
    registered = register(
        database,
        experiment,
        image_set.identity,
        training_images=training_images(image_set, experiment.labels),
    )
    budget = experiment.search.trials
    missing = sum(max(0, budget - entry.finished) for entry in read_progress(database, experiment))
    if missing == 0:
        console.print(f"Every label of {experiment.name} has its {budget} trials; raise search.trials for more.")
        return registered
    console.print(
        f"{experiment.name}: {len(experiment.labels)} labels, {cost_line(predict_cost(database, experiment))} "
        f"{count} worker{'s' if count > 1 else ''}, storage {masked(database.url)}",
        soft_wrap=True,
    )
    for name, trials in count_learnt(database, experiment, registered.exponents).items():
        console.print(f"Its first trials learn from {trials:,} trials of {name}.", soft_wrap=True, highlight=False)
    for warning in caveats(experiment):
        console.print(f"Warning: {warning}", soft_wrap=True, highlight=False)
    console.print(predict_disk(experiment, image_set, workers=count).line(), soft_wrap=True)
    if fleet.cluster is not None:
        submission = submit_workers(experiment, storage=database.url, workers=count, device=fleet.device)
        print_submission(experiment.name, submission, console)
        return registered
    if not places:
        console.print(
            f"{experiment.name} is registered: `acuity worker {experiment.name}` runs its trials", soft_wrap=True
        )
        return registered
    if in_background is not None:
        process, log = start_in_background(experiment.name, in_background, environment=database.environment())
        console.print(
            f"{experiment.name} runs in the background (process {process}, log {log}): "
            f"`acuity status {experiment.name}` shows it, `acuity stop {experiment.name}` ends it",
            soft_wrap=True,
        )
        return registered
    with live_progress(database, console, images=training_images(image_set, experiment.labels)) as live:

        def refresh(alive: int) -> None:
            if live.is_due() or not alive:
                live.look(experiment, workers=alive)

        run_fleet(database, registered, places=places, refresh=refresh)
    return registered
