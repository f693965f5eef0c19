"""Commands that change the storage: delete an experiment, add a reader, move to another server.

The commands import heavy packages themselves, so that --help takes little time.
"""

import os

import click

from acuity.study.cli.options import acuity, command, named_storage, open_database


@command("acuity delete nih")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(name: str, yes: bool) -> None:
    """Delete an experiment: trials, verdicts, scores, and the networks that this host sees.

    Images, split and decoded images are not deleted.
    """
    from acuity.study.registry.progress import read_progress
    from acuity.study.registry.record import delete_registered, read_registered
    from acuity.study.units import counted

    with open_database() as database:
        registered = read_registered(database, name)
        progress = read_progress(database, registered.experiment)
        trials = sum(entry.finished + entry.running for entry in progress)
        if not yes:
            what = f"{name} with {counted(trials, 'trial')} of {counted(len(progress), 'label')}"
            click.confirm(f"Delete {what}?", abort=True, err=True)
        delete_registered(database, registered)
    click.echo(f"deleted {name}", err=True)


@acuity.group(epilog="\b\nExample:\n  acuity storage move postgresql://acuity@db.example/nih")
def storage() -> None:
    """Print the storage's URL, add a reader, or move the storage to another server."""


@command("acuity storage url --keep", group=storage)
@click.option("--optuna", is_flag=True, help="With the driver's name, as SQLAlchemy, Optuna and pandas need it.")
@click.option("--keep", is_flag=True, help="Keep the storage open until Ctrl-C: the embedded server runs meanwhile.")
def url(optuna: bool, keep: bool) -> None:
    """Print the storage's URL for psql, or with --optuna for Optuna. It has no password in it.

    The embedded server's URL names a file with the password, which only you can read. That server runs while a program
    of Acuity uses it, so start --keep first, or open the experiment in Python (acuity.open).
    """
    from acuity.storage.admin.client_url import client_url
    from acuity.study.fleet.signals import stop_signals

    with open_database() as database:
        found = client_url(database.url, embedded=database.named_url is None)
        with stop_signals() as stop:
            click.echo(found.optuna if optuna else found.psql)
            if found.has_password:
                click.echo(
                    "the URL has no password: put it into $PGPASSWORD, or into ~/.pgpass or the file that $PGPASSFILE "
                    "names (host:port:database:user:password)",
                    err=True,
                )
            if keep:
                click.echo("the storage stays open until Ctrl-C", err=True)
                stop.wait()
            elif database.named_url is None:
                click.echo(
                    "the embedded server runs while a program of Acuity uses it: `acuity storage url --keep`, a "
                    "launch, a dashboard or an open acuity.open(…)",
                    err=True,
                )


@command("acuity storage grant-reader nih_reader", group=storage)
@click.argument("role")
def grant_reader(role: str) -> None:
    """Make a database role that may read all tables of Acuity and write none, for dashboards and notebooks.

    The role can log in if $ACUITY_READER_PASSWORD, or the file that $ACUITY_READER_PASSWORD_FILE names, has a password.
    """
    from acuity.storage.admin.grants import grant_reader as grant
    from acuity.storage.passwords import read_password
    from acuity.storage.url import masked
    from acuity.study.errors import UsageError

    password = read_password(os.environ, "ACUITY_READER_PASSWORD")
    if not (named_storage() or os.environ.get("ACUITY_STORAGE")):
        raise UsageError(
            "the embedded Postgres opens to this user alone, so no other user can log in as that role. Name a server "
            "with --storage; `acuity storage move` moves the embedded server's experiments to it"
        )
    with open_database() as database:
        reader = grant(database, role, password=password)
        address = masked(database.url.set(username=role))
    click.echo(f"{role} may read all tables here, and write none", err=True)
    if reader.can_make:
        click.echo(
            f"every role of this database may make {' and '.join(reader.can_make)}, so {role} may too: they take disk. "
            "Run this command as a superuser once to take that right from all roles",
            err=True,
        )
    if reader.can_log_in:
        click.echo(f"log in with {address}", err=True)
    else:
        click.echo(
            f'{role} cannot log in. Grant it to a role that can (grant "{role}" to alice), or set '
            "ACUITY_READER_PASSWORD and run this command again",
            err=True,
        )


@command("acuity storage move postgresql://acuity@db.example/nih", group=storage)
@click.argument("url", envvar="ACUITY_STORAGE", metavar="URL")
def move(url: str) -> None:
    """Move all experiments of the embedded server, with all trials, into an empty database of another server.

    The rows of both servers are compared before the move is committed. By default URL is $ACUITY_STORAGE. Its password
    may also be in $PGPASSWORD or ~/.pgpass.
    """
    from acuity.study.errors import UsageError
    from acuity.study.move import move_storage

    if named_storage():
        raise UsageError("storage move always moves the embedded server: leave --storage out")
    copied = move_storage(url, say=lambda line: click.echo(line, err=True))
    for table in copied:
        click.echo(f"{table.table:40}{table.rows:>10,}  SHA-256 {table.sha256[:16]}")
