"""The commands that change the storage: delete an experiment, add a reader, move to another server.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import os

import click

from acuity.study.cli.options import acuity, command, named_storage, open_database


@command("acuity delete nih")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(name: str, yes: bool) -> None:
    """Delete an experiment with all its trials; images, split and cache stay."""
    from acuity.study.registry.progress import read_progress
    from acuity.study.registry.record import forget, recall

    with open_database() as database:
        registered = recall(database, name)
        progress = read_progress(database, registered.experiment)
        trials = sum(entry.finished + entry.running for entry in progress)
        if not yes:
            click.confirm(f"Delete {name} with {trials} trials of {len(progress)} labels?", abort=True, err=True)
        forget(database, registered)
    click.echo(f"deleted {name}", err=True)


@acuity.group(epilog="\b\nExample:\n  acuity storage move postgresql://acuity@db.example/nih")
def storage() -> None:
    """Add a reader to the storage, or move it to another server."""


@command("acuity storage grant-reader nih_reader", group=storage)
@click.argument("role")
def grant_reader(role: str) -> None:
    """Make a database role that reads all tables of Acuity and writes none, for dashboards and notebooks.

    The role can log in if $ACUITY_READER_PASSWORD, or the file that $ACUITY_READER_PASSWORD_FILE names, has a password.
    """
    from acuity.storage.admin.grants import grant_reader as grant
    from acuity.storage.passwords import read_password
    from acuity.storage.url import masked
    from acuity.study.errors import UsageError

    password = read_password(os.environ, "ACUITY_READER_PASSWORD")
    if not (named_storage() or os.environ.get("ACUITY_STORAGE")):
        raise UsageError(
            "the embedded Postgres opens to this user alone, so nobody else could read as that role: name a server "
            "with --storage. `acuity storage move` brings there what is in the embedded one"
        )
    with open_database() as database:
        can_log_in = grant(database, role, password=password)
        address = masked(database.url.set(username=role))
    click.echo(f"{role} may read everything here, and write nothing", err=True)
    if can_log_in:
        click.echo(f"log in by {address}", err=True)
    else:
        click.echo(
            f'it cannot log in: grant it to those who may (grant "{role}" to alice), or set ACUITY_READER_PASSWORD and '
            "run this again",
            err=True,
        )


@command("acuity storage move postgresql://acuity@db.example/nih", group=storage)
@click.argument("url", envvar="ACUITY_STORAGE", metavar="URL")
def move(url: str) -> None:
    """Move everything on the embedded server, with all trials, into an empty database of another server.

    The rows of both sides are compared before the move is committed. By default URL is $ACUITY_STORAGE; its password
    may also be in $PGPASSWORD or ~/.pgpass.
    """
    from acuity.study.errors import UsageError
    from acuity.study.move import move_storage

    if named_storage():
        raise UsageError("storage move takes what is on the embedded server: leave --storage out")
    copied = move_storage(url, say=lambda line: click.echo(line, err=True))
    for table in copied:
        click.echo(f"{table.table:40}{table.rows:>10,}  SHA-256 {table.sha256[:16]}")
