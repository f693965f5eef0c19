"""Commands that read an experiment: its progress, its results and its networks.

The commands import heavy packages themselves, so that --help takes little time.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from acuity.study.cli.options import command, device_option, open_database

if TYPE_CHECKING:
    from pandas import DataFrame

_format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "markdown"]),
    default="table",
    show_default=True,
)


@command("acuity list", name="list")
@_format_option
def list_experiments(form: str) -> None:
    """List the experiments of the storage with their progress."""
    from acuity.study.results.tables import read_experiments

    with open_database() as database:
        table = read_experiments(database)
    if form == "table":
        _print_experiments(table)
    else:
        _print_table(table, form)


@command("acuity trials nih --format csv")
@click.argument("name")
@click.option("--label", help="Only this label.")
@_format_option
def trials(name: str, label: str | None, form: str) -> None:
    """Print every trial of an experiment, of the search and of the confirmation.

    The table has the main columns; csv, json and markdown have all columns of the view acuity.all_trials.
    """
    from acuity.study.display.answer_table import trials_table
    from acuity.study.display.console import results_console
    from acuity.study.results.tables import read_trials

    with open_database() as database:
        table = read_trials(database, name, label=label)
    if form == "table":
        results_console().print(trials_table(table))
    else:
        _print_table(table, form)


@command("acuity status nih --watch")
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Show the progress until nothing is left to run, or until Ctrl-C.")
def status(name: str | None, watch: bool) -> None:
    """Show the progress of each label of an experiment, and the running trials on all hosts.

    Without NAME, list the experiments of the storage, as `acuity list` does.

    With --watch the table redraws itself. A file or a pipe gets a line every ten seconds. The command ends with status
    0 when every label has its trials and a confirmation that has begun is complete. Until then it also waits if no
    worker runs or the database is away.
    """
    from acuity.study.display.console import results_console
    from acuity.study.display.progress_table import progress_table
    from acuity.study.display.watch import watch as watch_experiment
    from acuity.study.registry.record import read_registered
    from acuity.study.results.status import read_status
    from acuity.study.results.tables import read_experiments

    if name is None and watch:
        raise click.UsageError("--watch needs the NAME of an experiment; `acuity list` prints the names")
    with open_database() as database:
        if name is None:
            _print_experiments(read_experiments(database))
        elif watch:
            watch_experiment(database, name, results_console())
        else:
            experiment = read_registered(database, name).experiment
            results_console().print(progress_table(read_status(database, experiment), title=name))


@command("acuity dashboard --port 8080")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every address.")
@click.option("--writable", is_flag=True, help="Allow every visitor of the page to change and delete studies.")
def dashboard(port: int, host: str, writable: bool) -> None:
    """Serve an overview and optuna-dashboard, read-only and for this host only.

    If --host admits other hosts, the dashboard asks for the user acuity and a password. Set the password in
    $ACUITY_DASHBOARD_PASSWORD, or in the file that $ACUITY_DASHBOARD_PASSWORD_FILE names. For this host a password is
    optional.
    """
    from acuity.study.dashboard.server import serve_dashboard

    with open_database() as database:
        serve_dashboard(
            database,
            port=port,
            host=host,
            writable=writable,
            announce=lambda address: click.echo(f"{address}  (Ctrl-C stops it)", err=True),
        )


@command("acuity best nih --format json")
@click.argument("name")
@click.option("--label", help="Only this label; after a confirmation, with all results.")
@click.option(
    "--by",
    type=click.Choice(["label", "resolution"]),
    default="label",
    show_default=True,
    help="A row per label, or per label and resolution, in csv and markdown.",
)
@_format_option
def best(name: str, label: str | None, by: str, form: str) -> None:
    """Print the result of each label: the confirmed verdict, or before it the search's best trial (optimistic).

    With --by resolution, print the AUC at every resolution.
    """
    from acuity.study.display.answer_table import answer_table, auc_table, details_table
    from acuity.study.display.console import results_console
    from acuity.study.results.answer import read_answer, read_best_resolution
    from acuity.study.results.tables import read_auc_by_resolution

    with open_database() as database:
        if form in ("csv", "markdown") or (by == "resolution" and form == "json"):
            read = read_best_resolution if by == "label" else read_auc_by_resolution
            _print_table(read(database, name, label=label), form)
            return
        answer = read_answer(database, name, label=label)
    if form == "json":
        _print_json(answer.to_json())
        return
    if by == "resolution":
        results_console().print(auc_table(answer))
        return
    results_console().print(answer_table(answer))
    if label is not None:
        results_console().print(details_table(answer.labels[0]))


@command("acuity score nih --index other/index.csv")
@click.argument("name")
@click.option("--index", type=click.Path(path_type=Path), required=True, help="The index of the other image set.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="The folder of its image files; by default `images` beside the index.",
)
@device_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def score(name: str, index: Path, images: Path | None, device: str, form: str) -> None:
    """Score another image set with the confirmed networks. Nothing is chosen on it."""
    from acuity.study.display.answer_table import external_table
    from acuity.study.display.console import messages_console, results_console
    from acuity.study.registry.record import read_registered
    from acuity.study.score import score_index

    with open_database() as database:
        registered = read_registered(database, name)
        results = score_index(database, registered, index, images=images, device=device, console=messages_console())
    if form == "json":
        _print_json({"experiment": name, "index": str(index), "labels": results})
    else:
        results_console().print(external_table(results))


@command("acuity export nih --label Nodule --out nodule")
@click.argument("name")
@click.option("--label", required=True, help="The label of the network.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder that is empty or does not exist.")
@click.option(
    "--resolution", type=click.IntRange(min=16), help="In px; by default the reference, else the search's best."
)
@device_option
def export(name: str, label: str, out: Path, resolution: int | None, device: str) -> None:
    """Write a label's network to a folder that timm loads, with threshold, calibration and model card."""
    from acuity.study.registry.record import read_registered
    from acuity.study.report.export import export_network

    with open_database() as database:
        registered = read_registered(database, name)
        use = export_network(database, registered, label, out, resolution=resolution, device=device)
    network = use["network"]
    click.echo(
        f"wrote {out}: {label}, {network['architecture']} at {network['resolution']} px, {use['status']}; "
        f"{out}/README.md shows its use",
        err=True,
    )


@command("acuity report nih --out report")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder; an earlier report is replaced.")
def report(name: str, out: Path) -> None:
    """Write a report of one page with tables, figures and a methods section, and its figures for a paper."""
    from acuity.study.registry.record import read_registered
    from acuity.study.report.report import write_report

    with open_database() as database:
        write_report(database, read_registered(database, name), out)
    click.echo(f"wrote {out}/report.html, report.md and figures/ (PDF, SVG and PNG)", err=True)


def _print_experiments(table: "DataFrame") -> None:
    from acuity.study.display.console import results_console
    from acuity.study.display.progress_table import experiments_table

    if table.empty:
        click.echo(
            "There is no experiment yet. `acuity launch FILE` makes one; `acuity demo` makes an example.", err=True
        )
    else:
        results_console().print(experiments_table(table))


def _print_table(table: "DataFrame", form: str) -> None:
    from acuity.study.display.answer_table import markdown_table
    from acuity.study.units import inert_cell

    if form == "json":
        click.echo(table.to_json(orient="records", date_format="iso", indent=2))
    elif form == "csv":
        click.echo(table.map(inert_cell).to_csv(index=False).rstrip())
    else:
        click.echo(markdown_table(table))


def _print_json(table: object) -> None:
    from acuity.study.units import finite

    click.echo(json.dumps(finite(table), indent=2, allow_nan=False))
