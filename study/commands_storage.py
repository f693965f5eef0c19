"""What is kept in the storage.

Heavy packages are imported inside the commands, so that help answers at once.
"""

import click

from study.command import command


@command("acuity delete nih")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool, storage: str | None, verbose: bool) -> None:  # noqa: ARG001
    """Delete an experiment with all its trials; images, split and cache stay."""
    from storage.database import open_storage
    from study.progress import read_progress
    from study.register import forget, recall

    with open_storage(storage) as database:
        registered = recall(database, name)
        progress = read_progress(database, registered.experiment)
        trials = sum(entry.finished + entry.running for entry in progress)
        if not yes:
            click.confirm(f"Delete {name} with {trials} trials of {len(progress)} labels?", abort=True, err=True)
        forget(database, registered)
    click.echo(f"deleted {name}", err=True)
