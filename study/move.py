"""`acuity storage move`: move the experiments of the embedded server to another Postgres server."""

from collections.abc import Callable
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from acuity.storage.admin.copy import Copied
from acuity.storage.admin.move import move_into, put_aside
from acuity.storage.database import Database, open_storage
from acuity.storage.embedded.server import embedded_server
from acuity.storage.experiments import list_experiments
from acuity.storage.url import masked
from acuity.study.registry.record import checkpoints_of, recall


def move_storage(url: str, *, say: Callable[[str], None]) -> list[Copied]:
    """Move everything on the embedded server into the empty database at url; returns what was copied and compared.

    say: called with each line of information for the user.
    """
    with embedded_server() as source, open_storage(url) as target:
        copied = move_into(target, source)
        aside = put_aside(source)
        say(f"what was moved stays in the embedded server as it was, as database {aside}, which no command opens")
        for line in _weights(target):
            say(line)
    say(f"from now on: export ACUITY_STORAGE={masked(target.url)}")
    return copied


def _weights(database: Database) -> list[str]:
    """One line per checkpoint folder: the files stay in place, and other hosts need them too."""
    names_of: dict[str, list[str]] = {}
    for name in list_experiments(database):
        checkpoints = checkpoints_of(recall(database, name))
        if isinstance(checkpoints.files, LocalFileSystem) and Path(checkpoints.folder).is_dir():
            names_of.setdefault(checkpoints.folder, []).append(name)
    return [
        f"the networks of {', '.join(names)} stay in {folder}, where this host goes on with them. For others copy them "
        f"to a folder that all see (cp -r '{folder}/.' /shared/checkpoints), and name it as checkpoints under [workers]"
        for folder, names in names_of.items()
    ]
