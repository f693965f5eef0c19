"""Parse, check and mask the storage URL. No message shows its password."""

import ipaddress
import os
import re
from functools import cache
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from acuity.storage.errors import StorageError
from acuity.storage.passwords import read_password_file

DRIVER = "postgresql+psycopg2"
PASSWORD_FILE = "ACUITY_STORAGE_PASSWORD_FILE"
"""Variable that names a file with the password, for a URL without one: containers get secrets as files."""
EMBEDDED_LOCK = "server.lock"
"""File in the folder of an embedded server, beside the folder of the socket. The server's processes hold it."""
_EMBEDDED_ARGUMENTS = {
    "hostaddr": "",
    "port": "5432",
    "passfile": "",
    "options": "",
    "client_encoding": "utf8",
    "target_session_attrs": "any",
    "load_balance_hosts": "disable",
    "require_auth": "scram-sha-256",
    "channel_binding": "disable",
    "requirepeer": "",
    "gssencmode": "disable",
    "sslmode": "disable",
    "sslnegotiation": "postgres",
    "sslcertmode": "disable",
    "sslrootcert": "",
    "ssl_min_protocol_version": "",
    "ssl_max_protocol_version": "",
    "connect_timeout": "10",
}
UNPINNED_VARIABLES = ("PGSERVICE", "PGSERVICEFILE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""Variables of libpq that no argument overrides."""
_NEXT_STEP = "Name a Postgres (postgresql://user:password@host:5432/database) or drop --storage for the embedded one"


def parse_url(text: str) -> URL:
    """Parse the URL of a Postgres and set its driver: SQLAlchemy 2.1 reads a bare `postgresql://` as psycopg 3.

    A URL without a password gets the password in the file that ACUITY_STORAGE_PASSWORD_FILE names, if any. StorageError
    for any other text. Where a text cannot be parsed the message quotes only its scheme: the rest may be a password.
    """
    scheme, separator, _ = text.strip().partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise StorageError(f"the storage URL has no scheme. {_NEXT_STEP}")
    backend = scheme.lower().partition("+")[0]
    if backend == "sqlite":
        raise StorageError(
            f"storage {scheme}://… cannot be used: several workers write at once, SQLite cannot. {_NEXT_STEP}"
        )
    if backend not in ("postgresql", "postgres"):
        raise StorageError(f"storage {scheme}://… cannot be used, only Postgres can. {_NEXT_STEP}")
    if text.count("@") > 1:  # the first belongs to the password; the parser would read the text after it as the host
        raise StorageError(
            f"the {scheme}:// URL has more than one @: write a user's or password's @ as %40, / as %2F, : as %3A"
        )
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise StorageError(f"the {scheme}:// URL cannot be read (is its port a number?). {_NEXT_STEP}") from None
    url = _gather_credentials(url.set(drivername=DRIVER))
    if not url.database:
        raise StorageError(f"storage {masked(url)} names no database: end it with /NAME, such as /acuity")
    if url.password is not None:
        return url
    password = read_password_file(os.environ, PASSWORD_FILE)
    return url if password is None else url.set(password=password)


def embedded_arguments(url: URL) -> dict[str, str]:
    """Arguments that keep libpq's variables (PGPORT, PGSERVICE, …) from the embedded server; none for another server.

    libpq reads a variable, or an entry of the service file, for each argument that is not given. A password file that
    the URL names is read: `acuity storage url` prints such a URL.
    """
    if not is_embedded(url):
        return {}
    return {
        name: value
        for name, value in _EMBEDDED_ARGUMENTS.items()
        if _is_known(name) and not (name == "passfile" and "passfile" in url.query)
    }


@cache
def _is_known(argument: str) -> bool:
    """Whether this libpq knows the argument: libpq 15 has no require_auth."""
    try:
        parse_dsn(f"{argument}=''")
    except psycopg2.ProgrammingError:
        return False
    return True


def is_embedded(url: URL) -> bool:
    """Whether the URL names the embedded server."""
    host = url.query.get("host")
    return isinstance(host, str) and (Path(host).parent / EMBEDDED_LOCK).exists()


def storage_words(url: URL) -> str:
    """The storage in a sentence: `embedded Postgres`, or the masked URL of another server."""
    return "embedded Postgres" if is_embedded(url) else masked(url)


def masked(url: URL) -> str:
    """The URL for messages and logs: `postgresql://user:***@host:5432/database`."""
    secrets = {key: "***" for key in url.query if "password" in key.lower()}
    shown = url.set(drivername="postgresql").update_query_dict(secrets)
    return shown.render_as_string(hide_password=True)


def is_of_this_host(url: URL) -> bool:
    """Whether the URL names a loopback address or a socket, so that every host would use its own server."""
    named = url.query.get("hostaddr") or url.host or url.query.get("host") or os.environ.get("PGHOST", "")
    return all(_is_local(host) for host in (named.split(",") if isinstance(named, str) else named))


def _is_local(host: str) -> bool:
    """Whether a host is local: libpq reads an empty host or a folder as a socket, and `?host=` allows name:port."""
    if not host or host.startswith("/"):
        return True
    name = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _gather_credentials(url: URL) -> URL:
    """Move `?user=…&password=…`, which libpq accepts, to the fields that SQLAlchemy masks."""

    def last(key: str) -> str | None:
        value = url.query.get(key)
        return value[-1] if isinstance(value, tuple) else value

    return url.set(
        username=last("user") or url.username,
        password=last("password") or url.password,
        database=last("dbname") or url.database,
    ).difference_update_query(["user", "password", "dbname"])
