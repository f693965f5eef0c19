"""The commands that run an experiment, from its file to its trained networks.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from acuity.study.cli.options import command, device_option, is_verbose, named_storage, open_database


@command("acuity demo")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("acuity-demo"), show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="By default one per GPU, else two.")
def demo(folder: Path, workers: int | None) -> None:
    """Search synthetic radiographs for which the needed resolution is known, in a few minutes."""
    from acuity.study.demo import run_demo

    run_demo(folder, storage_url=named_storage(), workers=workers)


@command("acuity new nih.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(["sabottke2020"]), help="A published study instead of the template.")
def new(file: Path, preset: str | None) -> None:
    """Write a commented experiment file to start from."""
    from acuity.study.config.template import write_template

    write_template(file, preset=preset)
    click.echo(f"wrote {file}: set labels, [data] and [search], then `acuity launch {file}`", err=True)


@command("acuity prepare nih.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def prepare(file: Path, as_json: bool) -> None:
    """Check an experiment's images, labels, networks and disk, and decode the images, before any GPU time is spent."""
    from rich.console import Console

    from acuity.study.config.loading import load
    from acuity.study.display.console import decoding_bar, results_console
    from acuity.study.display.preparation_table import preparation_table
    from acuity.study.prepare import prepare as prepare_experiment

    experiment = load(file)
    with decoding_bar(Console(stderr=True)) as progress:
        preparation = prepare_experiment(experiment, storage_url=named_storage(), progress=progress)
    if as_json:
        click.echo(json.dumps(preparation.to_json(), indent=2, allow_nan=False))
    else:
        results_console().print(preparation_table(preparation))


@command("acuity fit resnet34 448 --device cuda:0")
@click.argument("architecture", required=False)
@click.argument("resolution", type=click.IntRange(min=16), required=False)
@click.option("--all", "file", type=click.Path(path_type=Path), help="Every network and resolution of this experiment.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@device_option
@click.option(
    "--memory-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory budget of a training step; by default that of a worker.",
)
@click.option("--most", type=click.IntRange(min=2), default=1024, show_default=True, help="Try no larger batch.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def fit(
    architecture: str | None,
    resolution: int | None,
    file: Path | None,
    precision: str,
    device: str,
    memory_gib: float | None,
    most: int,
    as_json: bool,
) -> None:
    """Find the largest batch that fits, by an estimate and a few real training steps."""
    from acuity.study.config.loading import load
    from acuity.study.display.console import results_console
    from acuity.study.fit import Cell, cells_of, fit_cells, fit_table, fits_to_json

    if (file is None) == (architecture is None or resolution is None):
        raise click.UsageError("name ARCHITECTURE and RESOLUTION, or --all EXPERIMENT.toml")
    if file is not None:
        experiment = load(file)
        cells, memory_gib = cells_of(experiment), memory_gib or experiment.workers.memory_budget_gib
    else:
        assert architecture is not None
        assert resolution is not None
        cells = [Cell(architecture, resolution, resolution, precision, most)]
    share, fits = fit_cells(cells, choice=device, memory_gib=memory_gib)
    if as_json:
        click.echo(json.dumps(fits_to_json(fits, share), indent=2, allow_nan=False))
    else:
        results_console().print(fit_table(fits, share))


@command("acuity launch nih.toml --workers 2")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Workers on this host; by default one per GPU, else two. 0: `acuity worker` starts them.",
)
@click.option("--workers-per-gpu", type=click.IntRange(min=1), help="In place of --workers; by default 1.")
@device_option
@click.option("--detach", is_flag=True, help="Run in the background; `acuity stop` ends it.")
@click.option("--cluster", type=click.Choice(["slurm"]), help="Submit --workers jobs, as [cluster] of the file says.")
def launch(
    file: Path, workers: int | None, workers_per_gpu: int | None, device: str, detach: bool, cluster: str | None
) -> None:
    """Run an experiment on this host until every label has its trials, then print the answer.

    If the experiment already runs, here or on another host, this adds workers. With --cluster it returns at once.
    """
    if cluster:
        if not workers or workers_per_gpu or detach:
            raise click.UsageError("--cluster slurm takes --workers N, a job each; they go on by themselves")
        from acuity.study.fleet.slurm import check_slurm

        check_slurm(named_storage(), warn=_warn)
    if workers and workers_per_gpu:
        raise click.UsageError("--workers and --workers-per-gpu: name one of the two")
    again = ["launch", str(file.resolve()), "--device", device]  # without the storage's URL, which may have a password
    again += ["--workers", str(workers)] if workers else []
    again += ["--workers-per-gpu", str(workers_per_gpu)] if workers_per_gpu else []
    from rich.console import Console

    from acuity.study.config.loading import load
    from acuity.study.display.answer_table import answer_table
    from acuity.study.display.console import results_console
    from acuity.study.fleet.supervisor import FleetOptions
    from acuity.study.launch import launch as launch_experiment
    from acuity.study.results.answer import read_answer

    experiment = load(file)
    with _print_how_to_continue(), open_database() as database:
        launch_experiment(
            database,
            experiment,
            FleetOptions(workers, workers_per_gpu, device, cluster),
            console=Console(stderr=True),
            in_background=again if detach else None,
        )
        if not detach and not cluster and workers != 0:
            results_console().print(answer_table(read_answer(database, experiment.name)))


@command("acuity worker nih --data /data/nih")
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of the index on this host.")
@device_option
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="How many share the device.")
@click.option("--threads", type=click.IntRange(min=1), help="On a CPU; by default the cores shared among the workers.")
def worker(name: str, data: Path | None, device: str, workers: int, threads: int | None) -> None:
    """Run one worker of an experiment that has been launched before, on this host or another.

    After SIGTERM or Ctrl-C the worker hands its trial back and exits with status 0. Status 75: the database is away.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the worker sets its handler, after seconds of imports
    from acuity.objectives.device.allocator import return_large_blocks

    return_large_blocks()
    from acuity.storage.errors import OutageError
    from acuity.study.errors import DeviceLostError
    from acuity.study.worker.loop import run_worker

    logging.getLogger().setLevel(logging.DEBUG if is_verbose() else logging.INFO)
    try:
        grown = run_worker(
            name, storage_url=named_storage(), folder=data, device=device, workers=workers, threads=threads
        )
    except OutageError as error:
        click.echo(f"acuity: {error}", err=True)
        sys.exit(os.EX_TEMPFAIL)
    except DeviceLostError as error:
        click.echo(f"acuity: {error}", err=True)
        sys.exit(os.EX_SOFTWARE)  # counts as a crash: a new process may get the device again
    if grown:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "acuity", *sys.argv[1:]])


@contextlib.contextmanager
def _print_how_to_continue() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("acuity: stopped; every trial keeps its last epoch, and the same command goes on", err=True)
        sys.exit(128 + signal.SIGINT)


@command("acuity stop nih")
@click.argument("name")
def stop(name: str) -> None:
    """End the launches of an experiment on this host, and its Slurm jobs; the workers hand their trials back."""
    from acuity.study.fleet.stop import stop_experiment

    stopped = stop_experiment(name, storage_url=named_storage() or os.environ.get("ACUITY_STORAGE"))
    launches, jobs = stopped.launches, stopped.jobs
    if launches:
        click.echo(f"stopped {launches} launch{'es' if launches > 1 else ''} of {name}", err=True)
    if jobs:
        click.echo(f"cancelled Slurm job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)} of {name}", err=True)
    if stopped.unknown:
        click.echo(f"whether Slurm has jobs of {name} is not known: {stopped.unknown}", err=True)


@command("acuity confirm nih --seeds 5")
@click.argument("name", metavar="NAME|FILE")
@click.option("--seeds", type=click.IntRange(min=3), help="Trainings of each finalist; by default [confirm] seeds.")
@click.option("--workers", type=click.IntRange(min=1), help="Workers on this host; by default one per GPU, else two.")
@device_option
@click.option("--cluster", type=click.Choice(["slurm"]), help="Submit --workers jobs that retrain; score later.")
def confirm(name: str, seeds: int | None, workers: int | None, device: str, cluster: str | None) -> None:
    """Retrain the search's best with several seeds and score them once on the held-out test patients.

    With the experiment's FILE, changes since the launch (such as [confirm] margin) take effect.
    """
    if cluster:
        if not workers:
            raise click.UsageError("--cluster slurm takes --workers N, a job each; they go on by themselves")
        from acuity.study.fleet.slurm import check_slurm

        check_slurm(named_storage(), warn=_warn)
    from acuity.study.confirm import confirm as confirm_experiment
    from acuity.study.display.answer_table import answer_table
    from acuity.study.display.console import messages_console, results_console
    from acuity.study.fleet.supervisor import FleetOptions
    from acuity.study.registry.register import recall_or_update
    from acuity.study.results.answer import read_answer

    with _print_how_to_continue(), open_database() as database:
        registered = recall_or_update(database, name)
        stored = confirm_experiment(
            database,
            registered,
            FleetOptions(workers, device=device, cluster=cluster),
            seeds=seeds,
            console=messages_console(),
        )
        if stored is None:
            return
        results_console().print(answer_table(read_answer(database, registered.experiment.name)))


def _warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)
