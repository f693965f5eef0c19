"""A PgBouncer in transaction mode before the tests' Postgres."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from sqlalchemy import URL, make_url

from acuity.storage.embedded.account import process_user, server_account
from support.postgres import libpq_url
from support.waiting import wait_until

_PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
MISSING = _PROGRAM is None


@contextmanager
def pgbouncer(server: URL, folder: Path, *, pool: int) -> Iterator[URL]:
    """Run PgBouncer with a pool of so many connections for each database; yields a URL of it."""
    assert _PROGRAM is not None
    account = server_account()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir(mode=0o755)
    users, settings = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text(f'"{server.username}" "{server.password}"\n')
    settings.write_text(
        f"""
        [databases]
        * = host={server.query["host"]}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = {pool}
        query_wait_timeout = 20
        """.replace("        ", "")
    )
    for path in (users, settings):
        path.chmod(0o644)
    with (folder / "log").open("w") as log:
        bouncer = subprocess.Popen([_PROGRAM, str(settings)], stdout=log, stderr=log, **process_user(account))
    url = make_url(f"postgresql+psycopg2://127.0.0.1:{port}/").set(
        username=server.username, password=server.password, database=server.database
    )
    try:
        wait_until(lambda: _answers(url))
        yield url
    finally:
        bouncer.terminate()
        bouncer.wait()
        print((folder / "log").read_text(errors="replace"))  # pytest shows it where a test fails


def _answers(url: URL) -> bool:
    try:
        psycopg2.connect(libpq_url(url)).close()
    except psycopg2.OperationalError:
        return False
    return True
