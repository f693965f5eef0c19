"""Commands that run an experiment, from its file to its trained networks.

The commands import heavy packages themselves, so that --help takes little time.
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
from acuity.study.config.template import PRESETS


@command("acuity demo")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("acuity-demo"), show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="By default one per GPU, else two.")
def demo(folder: Path, workers: int | None) -> None:
    """Run a small experiment on synthetic radiographs that need a known resolution. It takes two to three minutes."""
    from acuity.study.demo import run_demo

    run_demo(folder, storage_url=named_storage(), workers=workers)


@command("acuity new nih.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(PRESETS), help="A published study instead of the template.")
def new(file: Path, preset: str | None) -> None:
    """Write a commented experiment file to start from."""
    from acuity.study.config.template import write_template

    write_template(file, preset=preset)
    click.echo(f"wrote {file}: set labels, [data] and [search], then `acuity launch {file}`", err=True)


@command("acuity prepare nih.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.option(
    "--look",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a PNG of what the networks see: each label at each resolution, and the most unusual images.",
)
def prepare(file: Path, as_json: bool, look: Path | None) -> None:
    """Check an experiment's images, labels, networks and disk, and decode the images. It needs no GPU."""
    from acuity.study.config.loading import load
    from acuity.study.display.console import decoding_bar, messages_console, results_console
    from acuity.study.display.preparation_table import preparation_table
    from acuity.study.prepare import prepare as prepare_experiment

    experiment = load(file)
    with decoding_bar(messages_console()) as progress:
        preparation = prepare_experiment(experiment, storage_url=named_storage(), look=look, progress=progress)
    if look is not None:
        click.echo(f"wrote {look}: it shows images of patients, so keep it where the images are", err=True)
    if as_json:
        click.echo(json.dumps(preparation.to_json(), indent=2, allow_nan=False))
    else:
        results_console().print(preparation_table(preparation))


@command("acuity fit resnet34 448 --device cuda:0")
@click.argument("architecture", required=False)
@click.argument("resolution", type=click.IntRange(min=16), required=False)
@click.option("--all", "file", type=click.Path(path_type=Path), help="Every network and resolution of this experiment.")
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16"]), default="fp32", show_default=True)
@device_option
@click.option(
    "--memory-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory budget of a training step; by default that of a worker.",
)
@click.option("--most", type=click.IntRange(min=2), default=1024, show_default=True, help="Try no larger batch size.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
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
    """Find the largest batch size that fits, by an estimate and a few real training steps."""
    from acuity.objectives.device.allocator import expand_gpu_segments

    expand_gpu_segments()
    from acuity.study.config.loading import load
    from acuity.study.display.batch_table import batch_table
    from acuity.study.display.console import results_console
    from acuity.study.fit import NetworkSetting, probe_batches, searched_settings

    if (file is None) == (architecture is None or resolution is None):
        raise click.UsageError("name ARCHITECTURE and RESOLUTION, or --all EXPERIMENT.toml")
    if file is not None:
        experiment = load(file)
        settings, memory_gib = searched_settings(experiment), memory_gib or experiment.workers.memory_budget_gib
    else:
        assert architecture is not None
        assert resolution is not None
        settings = [NetworkSetting(architecture, resolution, resolution, precision, most)]
    found = probe_batches(settings, device_name=device, memory_gib=memory_gib)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        results_console().print(batch_table(found))


@command("acuity launch nih.toml --workers 2")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Workers on this host; by default one per GPU, else two. 0: start them with `acuity worker`.",
)
@click.option(
    "--workers-per-gpu",
    type=click.IntRange(min=1),
    help="In place of --workers; by default 1. With --cluster: workers of each job, which share its GPU.",
)
@device_option
@click.option("--detach", is_flag=True, help="Run in the background; `acuity stop` ends it.")
@click.option(
    "--cluster", type=click.Choice(["slurm"]), help="Submit --workers as jobs, with the resources of [cluster]."
)
def launch(
    file: Path, workers: int | None, workers_per_gpu: int | None, device: str, detach: bool, cluster: str | None
) -> None:
    """Run an experiment on this host until every label has its trials, then print the best resolutions.

    If the experiment already runs, here or on another host, this command adds workers. With --cluster it returns at
    once.
    """
    if cluster and detach:
        raise click.UsageError("--cluster slurm excludes --detach: the workers are jobs of Slurm")
    if cluster:
        _check_cluster(workers)
    elif workers and workers_per_gpu:
        raise click.UsageError("--workers and --workers-per-gpu: name one of the two")
    # The arguments of the process in the background. The storage's URL may have a password, so it is no argument.
    background = ["launch", str(file.resolve()), "--device", device]
    background += ["--workers", str(workers)] if workers else []
    background += ["--workers-per-gpu", str(workers_per_gpu)] if workers_per_gpu else []
    from acuity.study.config.loading import load
    from acuity.study.display.answer_table import answer_table
    from acuity.study.display.console import messages_console, results_console
    from acuity.study.fleet.placement import FleetOptions
    from acuity.study.launch import launch as launch_experiment
    from acuity.study.results.answer import read_answer

    experiment = load(file)
    with _print_how_to_continue(), open_database() as database:
        launch_experiment(
            database,
            experiment,
            FleetOptions(workers, workers_per_gpu, device, cluster),
            console=messages_console(),
            in_background=background if detach else None,
        )
        if not detach and not cluster and workers != 0:
            results_console().print(answer_table(read_answer(database, experiment.name)))


@command("acuity worker nih --data /data/nih")
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of the index on this host.")
@device_option
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Workers on the device.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default this worker's share of the cores.")
def worker(name: str, data: Path | None, device: str, workers: int, threads: int | None) -> None:
    """Run one worker of an experiment that was launched before, on this host or another.

    After SIGTERM or Ctrl-C the worker releases its trial and exits with status 0. Status 75: the database is away.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the worker sets its handler, after seconds of imports
    from acuity.objectives.device.allocator import expand_gpu_segments, return_large_blocks

    return_large_blocks()
    expand_gpu_segments()
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


@command("acuity stop nih")
@click.argument("name")
def stop(name: str) -> None:
    """Stop the launches of an experiment on this host and cancel its Slurm jobs. The workers release their trials."""
    from acuity.study.fleet.stop import stop_experiment

    stopped = stop_experiment(name, storage_url=named_storage() or os.environ.get("ACUITY_STORAGE"))
    launches, jobs = stopped.launches, stopped.jobs
    if launches:
        click.echo(f"stopped {launches} launch{'es' if launches > 1 else ''} of {name}", err=True)
    if jobs:
        click.echo(f"cancelled Slurm job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)} of {name}", err=True)
    if stopped.unknown:
        click.echo(f"whether Slurm has jobs of {name} is not known: {stopped.unknown}", err=True)


@command("acuity confirm nih")
@click.argument("name", metavar="NAME|FILE")
@click.option("--seeds", type=click.IntRange(min=3), help="Held-out design: trainings of each finalist.")
@click.option("--workers", type=click.IntRange(min=1), help="Workers on this host; by default one per GPU, else two.")
@device_option
@click.option(
    "--cluster", type=click.Choice(["slurm"]), help="Retrain in --workers Slurm jobs; run the command again to score."
)
@click.option("--yes", is_flag=True, help="Do not ask if the test patients can decide no label.")
def confirm(name: str, seeds: int | None, workers: int | None, device: str, cluster: str | None, yes: bool) -> None:
    """Retrain the search's best configurations and score test patients with networks that were not trained on them.

    If you give the experiment's FILE, its changes since the launch apply, such as [confirm] margin. If the test
    patients are too few to decide any label, the command asks before it uses them.
    """
    if cluster:
        _check_cluster(workers)
    from acuity.study.confirm import confirm as confirm_experiment
    from acuity.study.display.answer_table import answer_table
    from acuity.study.display.console import messages_console, results_console
    from acuity.study.fleet.placement import FleetOptions
    from acuity.study.registry.register import read_or_update
    from acuity.study.results.answer import read_answer

    with _print_how_to_continue(), open_database() as database:
        registered = read_or_update(database, name)
        stored = confirm_experiment(
            database,
            registered,
            FleetOptions(workers, device=device, cluster=cluster),
            seeds=seeds,
            console=messages_console(),
            ask=_agree if yes else _ask_to_confirm,
        )
        if stored is None:
            return
        results_console().print(answer_table(read_answer(database, registered.experiment.name)))


def _agree(_: str) -> None:
    """The answer of --yes."""


def _ask_to_confirm(statement: str) -> None:
    """Ask on the terminal. UsageError where there is none, click.Abort for no."""
    from acuity.study.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(f"{statement}: add --yes to confirm, or add test patients")
    click.confirm(f"{statement}. Confirm?", abort=True, err=True)


def _check_cluster(workers: int | None) -> None:
    """UsageError without a number of jobs, or where Slurm cannot run them."""
    if not workers:
        raise click.UsageError("--cluster slurm needs --workers N: it submits N workers")
    from acuity.study.fleet.slurm import check_slurm

    check_slurm(named_storage(), warn=_warn)


@contextlib.contextmanager
def _print_how_to_continue() -> Iterator[None]:
    """Print at Ctrl-C that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("acuity: stopped; every trial keeps its last epoch, and the same command continues", err=True)
        sys.exit(128 + signal.SIGINT)


def _warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)
