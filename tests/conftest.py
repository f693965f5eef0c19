"""Fixtures of all tests: a real Postgres with a new database for each test, and a small set of phantoms."""

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
from hypothesis import HealthCheck, settings
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
# An example's duration is no claim of a test, and on busy cores it passes any limit.
settings.register_profile("acuity", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("acuity")


def pytest_configure() -> None:
    """Set what libraries read when they are imported. Commands that tests start inherit it."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads weights; without a network each try would wait half a minute
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The processes share the cores already. OpenMP's threads spin while they wait, which costs the other processes.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Handle Ctrl-C: processes that a shell starts in the background ignore it, and so would their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_users() -> Iterator[Path]:
    """Keep tests away from the user's storage and home; returns the folder of the tests' embedded server.

    Each process of a parallel run has its folder, so no file or server is shared between them.
    """
    # Not in pytest's temporary folder: the account of root's server cannot reach it, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="acuity-test-", dir=_MEMORY if _has_room(_MEMORY) else None))
    folder.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACUITY_STORAGE", raising=False)
        patch.setenv("ACUITY_EMBEDDED_DIR", str(folder / "server"))
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            patch.delenv(f"XDG_{kind}_HOME", raising=False)
        (folder / "home").mkdir()
        patch.setenv("HOME", str(folder / "home"))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(nothing_of_the_users: Path) -> Iterator[URL]:
    """A running Postgres with a template database that has all tables."""
    with embedded_server(nothing_of_the_users / "server") as url:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            query(url, f"alter system set {setting} = off")  # the data are not kept after the run
        query(url, "select pg_reload_conf()")
        query(url, f"create database {_TEMPLATE}")
        with open_storage(url.set(database=_TEMPLATE).render_as_string(hide_password=False)):
            pass
        yield url


@pytest.fixture
def database_url(server: URL) -> Iterator[str]:
    """The URL, with its password, of a new database with all tables."""
    with fresh_database(server, f"test_{next(_numbers)}", template=_TEMPLATE) as url:
        yield url


@pytest.fixture
def empty_database_url(server: URL) -> Iterator[str]:
    """The URL of a new database without tables."""
    with fresh_database(server, f"test_{next(_numbers)}") as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A new database, opened."""
    with open_storage(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a small set of synthetic radiographs of 64 px."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), images=240, size=64)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home folder for caches and logs."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(home: Path, database_url: str) -> dict[str, str]:
    """Environment variables of commands: the test's home folder and database."""
    return os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "ACUITY_STORAGE": database_url}


@pytest.fixture
def browser() -> "Iterator[Browser]":
    """Debian's Chromium, headless."""
    from playwright.sync_api import expect, sync_playwright  # the import takes half a second

    expect.set_options(timeout=60_000)  # optuna-dashboard's scripts take longer than the default of 5 s on busy cores
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Confirmed:
    """The confirmed experiment "tiny". All tests share it; none may change it."""

    url: str
    registered: "Registered"


@pytest.fixture(scope="session")
def confirmed(server: URL, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confirmed]:
    """A database with a confirmed experiment and its checkpoints."""
    from support.confirmed_experiment import make_confirmed  # imports torch and optuna

    with fresh_database(server, "test_confirmed", template=_TEMPLATE) as url:
        yield Confirmed(url, make_confirmed(url, tmp_path_factory.mktemp("confirmed"), phantoms))


def _has_room(folder: Path) -> bool:
    """Whether databases fit into the folder. A container's /dev/shm of 64 MiB is too small."""
    return folder.is_dir() and shutil.disk_usage(folder).free > 2 * 2**30
