"""Run what compose.yaml runs, in the image that rehearse.py has built: one experiment, to its last trial.

Started by rehearse.py, in a network and among processes of its own: `postgres` is on port 5432 there, the dashboard on
8080, and whatever still runs at the end ends with this process.
"""

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
from compose_file import read_compose
from containers import (
    Container,
    Engine,
    container_of,
    is_healthy,
    open_engine,
    start_as_process_1,
    start_by_buildah,
    terminate,
)

from objectives.phantom import write_phantoms
from storage.embedded_account import identity, server_account, server_binaries

DOCKER = Path(__file__).parent.parent
TRIALS, LABELS = 6, ("Cardiomegaly", "Nodule")
EXPERIMENT = f"""\
name = "rehearsal"
labels = {json.dumps(LABELS)}
[data]
index = "/images/Data_Entry.csv"
images = "/images/images"
split = "/state/rehearsal.split.csv"
cache = "/cache/rehearsal"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = {TRIALS}
min_complete_per_resolution = 2
min_updates_per_epoch = 5
[training]
epochs = 8
[workers]
checkpoints = "/state/checkpoints"
"""


def perform(folder: Path, image: str) -> None:
    """Every service of compose.yaml with compose.cpu.yaml, and the end of the experiment."""
    engine, stage = open_engine(folder, image), folder / "stage"
    variables = {"ACUITY_IMAGES": "phantoms", "ACUITY_EXPERIMENT": "rehearsal", "ACUITY_WORKERS": "2"}
    project = read_compose([DOCKER / "compose.yaml", DOCKER / "compose.cpu.yaml"], variables)
    passwords = set_stage(stage, user=int(engine.settings["User"].partition(":")[0]))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def container(service: str) -> Container:
        return container_of(project, service, engine, folder=stage, hosts=stage / "hosts")

    with postgres(folder, password_file=stage / "secrets" / "postgres_password") as ask:
        expect(run(engine, container("launch")) == 0, "launch: the experiment is registered, its images decoded")
        dashboard = start_as_process_1(engine, container("dashboard"))
        wait_until(lambda: answer(None) == 401, "dashboard: asks for its password")
        expect(answer("wrong") == 401, "dashboard: refuses another one")
        expect(answer(passwords[1]) == 200, "dashboard: comes with the password")
        expect(is_healthy(engine, dashboard), "dashboard: is healthy")

        first = start_as_process_1(engine, container("worker"))
        epochs = "select count(*) from trial_intermediate_values"
        wait_until(lambda: ask(epochs) >= 2, "worker: trains, as process 1, on a system that it can't write to")
        expect(is_healthy(engine, first), "worker: is healthy")
        status, seconds = terminate(first)
        expect(status == 0 and seconds < 10, f"worker: SIGTERM, status {status} after {seconds:.1f} s")
        expect(ask("select count(*) from trials where state = 'RUNNING'") == 0, "worker: its trial is handed back")

        expect_no_password(engine, passwords, workers := [start_by_buildah(engine, container("worker")) for _ in "12"])
        expect([worker.wait(timeout=600) for worker in workers] == [0, 0], "worker: two others end with status 0")
        finished = "select count(*) from acuity.trials where state in ('COMPLETE', 'PRUNED') and not requeued"
        counted = [ask(f"{finished} and label = '{label}'") for label in LABELS]
        expect(counted == [TRIALS] * len(LABELS), f"every label has its {TRIALS} trials, exactly: {counted}")
        resumed = ask("select max(value_json::numeric) from trial_user_attributes where key = 'resumed_epochs'")
        expect((resumed or 0) >= 1, f"the trial handed back went on after epoch {resumed}")

        best = replace(container("worker"), command=[*engine.settings["Entrypoint"], "best", "rehearsal"])
        expect(run(engine, best) == 0, "best: answers")
        expect(run(engine, replace(best, environment={})) == 1, "without ACUITY_STORAGE nothing runs unseen: status 1")
        status, seconds = terminate(dashboard)
        expect(status == 0 and seconds < 10, f"dashboard: SIGTERM, status {status} after {seconds:.1f} s")
        expect_no_password(engine, passwords, [])


def set_stage(stage: Path, *, user: int) -> list[str]:
    """The folder that compose.yaml would be in on somebody's host; returns its two passwords."""
    passwords = [secrets.token_urlsafe(24), secrets.token_urlsafe(24)]
    subprocess.run(["rm", "-rf", str(stage)], check=True)
    (stage / "secrets").mkdir(parents=True)
    for name, password in zip(("postgres_password", "dashboard_password"), passwords, strict=True):
        (stage / "secrets" / name).write_text(password + "\n")
    (stage / "secrets").chmod(0o711)  # Postgres's account has to come through
    for volume in ("cache", "state"):
        (stage / "volumes" / volume).mkdir(parents=True)
        os.chown(stage / "volumes" / volume, user, user)
    (stage / "rehearsal.toml").write_text(EXPERIMENT)
    (stage / "hosts").write_text("127.0.0.1 localhost postgres\n")
    write_phantoms(stage / "phantoms", images=400, size=64)
    return passwords


@contextmanager
def postgres(folder: Path, *, password_file: Path) -> Iterator[Callable[[str], Any]]:
    """Where compose.yaml has postgres:18, the wheel's Postgres 18; yields what answers a query with one value."""
    account, data = server_account(), folder / "stage" / "postgres"
    for parent in (folder, folder / "stage"):
        parent.chmod(0o711)
    programs = server_binaries(folder, account)
    data.mkdir(mode=0o700)
    if account:
        subprocess.run(["chown", account, str(data)], check=True)
    where: dict[str, Any] = {"cwd": data, "stdout": subprocess.DEVNULL, **identity(account)}
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


def run(engine: Engine, container: Container) -> int:
    """One container, to its end."""
    return start_by_buildah(engine, container).wait(timeout=600)


def answer(password: str | None) -> int:
    """The dashboard's status for a request with this password; 0 while nothing answers."""
    request = urllib.request.Request("http://127.0.0.1:8080/dashboard/")
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"acuity:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def expect_no_password(engine: Engine, passwords: list[str], starting: list[subprocess.Popen[bytes]]) -> None:
    """In no process list, in no environment and in no log. starting: watched for as long as their start takes."""
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
    """Say what was seen, or end here."""
    print(("ok      " if condition else "FAILED  ") + what, flush=True)
    if not condition:
        raise AssertionError(what)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        perform(folder, sys.argv[2])
    except BaseException:
        log = folder / "containers.log"
        print("\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else "", file=sys.stderr)
        raise
