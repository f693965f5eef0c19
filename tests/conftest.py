"""Fixtures that every test may use: a real Postgres with a fresh database a test, a small set of phantoms."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.storage.database import Database, open_storage
from acuity.storage.embedded.server import embedded_server
from support.postgres import fresh_database, query

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from acuity.study.registry.record import Registered

_TEMPLATE = "acuity_template"
_MEMORY = Path("/dev/shm")
_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Started in a shell's background, processes ignore Ctrl-C, and so would those that the tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_users() -> Iterator[Path]:
    """No test may reach the user's own storage: the folder of an embedded server of our own, which starts at need."""
    # Not pytest's own temporary folder: the account of root's server cannot reach it, and sockets' paths are short.
    folder = Path(tempfile.mkdtemp(prefix="acuity-test-", dir=_MEMORY if _has_room(_MEMORY) else None))
    folder.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACUITY_STORAGE", raising=False)
        patch.setenv("ACUITY_EMBEDDED_DIR", str(folder / "server"))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(nothing_of_the_users: Path) -> Iterator[URL]:
    """A running Postgres with a template database that has all tables made."""
    with embedded_server(nothing_of_the_users / "server") as url:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            query(url, f"alter system set {setting} = off")  # nothing here outlives the run
        query(url, "select pg_reload_conf()")
        query(url, f"create database {_TEMPLATE}")
        with open_storage(url.set(database=_TEMPLATE).render_as_string(hide_password=False)):
            pass
        yield url


@pytest.fixture
def database_url(server: URL) -> Iterator[str]:
    """The URL of a fresh database with all tables made, password and all."""
    with fresh_database(server, f"test_{next(_numbers)}", template=_TEMPLATE) as url:
        yield url


@pytest.fixture
def empty_database_url(server: URL) -> Iterator[str]:
    """The URL of a database without any table."""
    with fresh_database(server, f"test_{next(_numbers)}") as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database, open."""
    with open_storage(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a small set of synthetic radiographs of 64 px."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), images=240, size=64)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home of its own, for caches and logs."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(home: Path, database_url: str) -> dict[str, str]:
    """A command's, with a home and a storage of the test's own."""
    return os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "ACUITY_STORAGE": database_url}


@pytest.fixture
def browser() -> "Iterator[Browser]":
    """Debian's Chromium, without a screen."""
    from playwright.sync_api import sync_playwright  # half a second that other tests need not wait for

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Confirmed:
    """The experiment "tiny", confirmed; to be read only, since all tests share it."""

    url: str
    registered: "Registered"


@pytest.fixture(scope="session")
def confirmed(server: URL, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confirmed]:
    """A database of its own with a confirmed experiment, networks and all."""
    from support.confirmed_experiment import make_confirmed  # torch and optuna only where they are asked for

    with fresh_database(server, "test_confirmed", template=_TEMPLATE) as url:
        yield Confirmed(url, make_confirmed(url, tmp_path_factory.mktemp("confirmed"), phantoms))


def _has_room(folder: Path) -> bool:
    """Databases in memory spare the tests the disk's waits; a container's 64 MiB would not do."""
    return folder.is_dir() and shutil.disk_usage(folder).free > 2 * 2**30
