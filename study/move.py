"""`acuity storage move`: move the experiments of the embedded server to another Postgres server."""

from collections.abc import Callable
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from acuity.storage.admin.copy import Copied
from acuity.storage.admin.move import copy_embedded, rename_source
from acuity.storage.database import Database, open_storage
from acuity.storage.embedded.server import embedded_server
from acuity.storage.experiments import list_experiments
from acuity.storage.url import masked
from acuity.study.registry.record import checkpoints_of, read_registered


def move_storage(url: str, *, say: Callable[[str], None]) -> list[Copied]:
    """Move every experiment of the embedded server into the empty database at url. Returns the copied tables.

    say: called with each line of information for the user.
    """
    with embedded_server() as source, open_storage(url) as target:
        copied = copy_embedded(target, source)
        aside = rename_source(source)
        say(f"the embedded server keeps the old data as database {aside}, which no command opens")
        for line in _checkpoint_lines(target):
            say(line)
    say(f"from now on: export ACUITY_STORAGE={masked(target.url)}")
    return copied


def _checkpoint_lines(database: Database) -> list[str]:
    """One line per local checkpoint folder. Its files are not moved, and workers on other hosts need them."""
    names_of: dict[str, list[str]] = {}
    for name in list_experiments(database):
        checkpoints = checkpoints_of(read_registered(database, name))
        if isinstance(checkpoints.files, LocalFileSystem) and Path(checkpoints.folder).is_dir():
            names_of.setdefault(checkpoints.folder, []).append(name)
    return [
        f"the networks of {', '.join(names)} stay in {folder}, where this host finds them. For other hosts copy them "
        f"to a folder that all hosts see (cp -r '{folder}/.' /shared/checkpoints), and name it as checkpoints under "
        "[workers]"
        for folder, names in names_of.items()
    ]
