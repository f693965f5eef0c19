"""`acuity launch`: image set, registration, workers and live progress, from an experiment file to finished budgets."""

from rich.console import Console

from storage.database import Database
from storage.experiments import find_experiment
from storage.url import masked
from study.caveats import caveats
from study.cost import predict_cost
from study.disk import predict_disk
from study.experiment import Experiment
from study.fleet import place_workers, run_fleet
from study.image_set import fewest_training_images, open_image_set, training_images
from study.launches import start_in_background
from study.live_progress import live_progress
from study.networks import check_networks
from study.progress import read_progress
from study.register import Registered, Whole, register
from study.search import check_fixed_batch
from study.slurm import submit_workers, tell_submission
from study.terminal import cost_line, decoding_bar
from study.tried import check_learn_from, count_learnt


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
    check_learn_from(database, experiment)
    with decoding_bar(console) as progress:
        image_set = open_image_set(experiment, progress=progress)
    if find_experiment(database, experiment.name) is None:
        check_fixed_batch(experiment, fewest_training_images(image_set, experiment.labels))
    registered = register(
        database,
        experiment,
        **image_set.identity(),
        training_images=training_images(image_set, experiment.labels),
        whole=Whole(**image_set.whole()),
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
    with live_progress(database, console, images=training_images(image_set, experiment.labels)) as live:

        def refresh(alive: int) -> None:
            if live.is_due() or not alive:
                live.look(experiment, workers=alive)

        run_fleet(database, registered, places=places, storage_url=storage_url, refresh=refresh)
    return registered
