"""The URL of the storage for other programs, such as psql and plain Optuna. It never has a password in it."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from sqlalchemy import URL

from acuity.storage.errors import StorageError
from acuity.storage.url import DRIVER

PASSWORD_FILE = "pgpass"
"""File in the folder of the embedded server: its password in libpq's format. The URL names it as `passfile`."""


@dataclass(frozen=True)
class ClientURL:
    """The URL of a storage, without its password."""

    psql: str
    """For psql and other programs that use libpq."""
    optuna: str
    """For SQLAlchemy, and so for Optuna and pandas: it names the driver psycopg2."""
    has_password: bool
    """Whether the server asks for a password that the program must get in another way, such as PGPASSFILE."""


def client_url(url: URL, *, embedded: bool) -> ClientURL:
    """The URL of an open storage for other programs.

    embedded: whether it is the embedded server's. Then a password file is written beside the server's data, readable by
    this user alone, and the URL names the file. StorageError where it cannot be written.
    """
    query = {key: value for key, value in url.query.items() if "password" not in key.lower()}
    if embedded:
        query |= {"port": "5432", "passfile": str(_write_password_file(url))}
    # SQLAlchemy writes a space as +, which libpq does not read.
    rest = "?" + urlencode(query, doseq=True, quote_via=quote, safe="/") if query else ""

    def written(driver: str) -> str:
        bare = URL.create(driver, username=url.username, host=url.host, port=url.port, database=url.database)
        return bare.render_as_string() + rest

    return ClientURL(
        psql=written("postgresql"),
        optuna=written(DRIVER),
        has_password=not embedded and (url.password is not None or query.keys() != url.query.keys()),
    )


def _write_password_file(url: URL) -> Path:
    """The password of the embedded server as a line `host:port:database:user:password` of a file."""
    assert isinstance(url.query["host"], str)
    file = Path(url.query["host"]).parent / PASSWORD_FILE
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"*:*:*:{url.username}:{url.password}\n")
        unfinished.replace(file)
    except OSError as error:
        raise StorageError(
            f"{file} cannot be written ({error.strerror}), and programs read the password there: make room on its disk "
            "and give this user the right to write to its folder"
        ) from None
    return file
