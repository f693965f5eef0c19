"""The folder and the Postgres of a rehearsal, and its checks."""

import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from containers import Engine

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.storage.embedded.account import process_user, server_account, server_binaries


def set_stage(stage: Path, *, user: int) -> list[str]:
    """Make the folder that compose.yaml would be in, with radiographs; returns the two passwords in it."""
    passwords = [secrets.token_urlsafe(24), secrets.token_urlsafe(24)]
    subprocess.run(["rm", "-rf", str(stage)], check=True)
    (stage / "secrets").mkdir(parents=True)
    for name, password in zip(("postgres_password", "dashboard_password"), passwords, strict=True):
        (stage / "secrets" / name).write_text(password + "\n")
    (stage / "secrets").chmod(0o711)  # the account of Postgres has to enter
    for volume in ("cache", "state"):
        (stage / "volumes" / volume).mkdir(parents=True)
        os.chown(stage / "volumes" / volume, user, user)
    (stage / "hosts").write_text(f"127.0.0.1 localhost postgres {platform.node()}\n")
    write_phantoms(stage / "phantoms", images=400, size=64)
    return passwords


@contextmanager
def postgres(folder: Path, *, password_file: Path) -> Iterator[Callable[[str], Any]]:
    """Run the wheel's Postgres 18 in place of postgres:18; yields a function that returns a query's first value."""
    account, data = server_account(), folder / "stage" / "postgres"
    for parent in (folder, folder / "stage"):
        parent.chmod(0o711)
    programs = server_binaries(folder, account)
    data.mkdir(mode=0o700)
    if account:
        subprocess.run(["chown", account, str(data)], check=True)
    where: dict[str, Any] = {"cwd": data, "stdout": subprocess.DEVNULL, **process_user(account)}
    cluster = [str(programs / "initdb"), "-D", str(data), "--username=acuity", f"--pwfile={password_file}"]
    subprocess.run([*cluster, "--auth=scram-sha-256", "--no-sync"], check=True, **where)
    settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    server = subprocess.Popen(
        [str(programs / "postgres"), "-D", str(data), *settings], stderr=subprocess.DEVNULL, **where
    )
    reach = {"host": "127.0.0.1", "user": "acuity", "password": password_file.read_text().strip()}

    def ask(query: str, database: str = "acuity") -> Any:
        connection = psycopg2.connect(dbname=database, **reach)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchone()[0] if cursor.description else None
        finally:
            connection.close()

    def is_up() -> bool:
        try:
            return bool(ask("select 1", "postgres"))
        except psycopg2.OperationalError:
            return False

    wait_until(is_up, "postgres: is up")
    ask("create database acuity", "postgres")
    try:
        yield ask
    finally:
        server.terminate()
        server.wait()


def finished_trials(ask: Callable[[str], Any], labels: Sequence[str]) -> list[int]:
    """The number of trials of each label that count towards its budget."""
    finished = "select count(*) from acuity.all_trials where state in ('COMPLETE', 'PRUNED') and not requeued"
    return [ask(f"{finished} and label = '{label}'") for label in labels]


def expect_no_password(engine: Engine, passwords: list[str], starting: list[subprocess.Popen[bytes]]) -> None:
    """Check that no command line, environment or log has a password. starting: processes to watch as they start."""
    deadline = time.monotonic() + (15 if starting else 0)
    while True:
        seen = [engine.log.read_text(errors="replace")]
        for kind in ("cmdline", "environ"):
            for file in Path("/proc").glob(f"[0-9]*/{kind}"):
                try:
                    seen.append(file.read_text(errors="replace"))
                except OSError:
                    continue
        assert not any(password in text for password in passwords for text in seen), "a password can be read"
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    expect(True, "no password in a process list, an environment or a log")


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            expect(False, what)
        time.sleep(0.1)
    expect(True, what)


def expect(condition: bool, what: str) -> None:
    """Print the result of a check; AssertionError where it failed."""
    print(("ok      " if condition else "FAILED  ") + what, flush=True)
    if not condition:
        raise AssertionError(what)
