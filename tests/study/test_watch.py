"""`acuity status --watch` shows an experiment until its end, on a terminal and in a pipe, through outages."""

import io
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy import URL

from acuity.storage.database import Database
from acuity.study.cli.main import acuity
from acuity.study.config.loading import parse
from acuity.study.config.paths import resolve_paths
from acuity.study.display.live import live_progress
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered
from acuity.study.registry.register import register
from support.commands import ACUITY
from support.confirmed_experiment import EXPERIMENT
from support.image_identities import unfiltered
from support.terminal import Terminal


@pytest.fixture
def running(database: Database, tmp_path: Path) -> Registered:
    """An experiment with a budget of 24 trials per label and one running trial."""
    table = tomllib.loads(EXPERIMENT.format(index=tmp_path / "index.csv", images=tmp_path))
    experiment = resolve_paths(parse(table, source="test"), tmp_path)
    registered = register(database, experiment, unfiltered(), training_images=150)
    database.storage.create_new_trial(_study_id(database, "Nodule"))
    return registered


def _study_id(database: Database, label: str) -> int:
    return database.storage.get_study_id_from_name(study_name("tiny", label))


def _end_running(database: Database, label: str) -> None:
    for trial in database.storage.get_all_trials(_study_id(database, label), states=(TrialState.RUNNING,)):
        database.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.75])


def _end_all(database: Database, registered: Registered) -> None:
    for label in registered.experiment.labels:
        for _ in range(registered.experiment.search.trials - (label == "Nodule")):
            database.storage.create_new_trial(_study_id(database, label))
        _end_running(database, label)


@contextmanager
def _outage(server: URL, database: Database) -> Iterator[None]:
    """The database refuses every connection during the block."""
    name = database.url.database
    connection = psycopg2.connect(server.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"alter database {name} allow_connections false")
        cursor.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
        yield
        cursor.execute(f"alter database {name} allow_connections true")
    connection.close()


@pytest.fixture
def terminal(running: Registered, environment: dict[str, str]) -> Iterator[Terminal]:
    watching = Terminal(["status", running.experiment.name, "--watch"], environment)
    yield watching
    watching.close()


def test_a_terminal_follows_the_trials_through_an_outage_to_the_end(
    terminal: Terminal, running: Registered, database: Database, server: URL
) -> None:
    terminal.wait_for("tiny: 1 running trial, time left: estimating")
    terminal.wait_for("Nodule 6")  # after the six initial trials, which wait
    with _outage(server, database):
        terminal.wait_for("the database is away since")
    terminal.wait_for("tiny: 1 running trial")
    _end_all(database, running)
    terminal.wait_for("tiny: done")
    assert terminal.wait() == 0
    assert "24/24" in terminal.shown
    assert "0.750" in terminal.shown
    assert "away" not in terminal.shown


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_it_ends_with_status_0_and_shows_the_cursor_again(
    terminal: Terminal, how: signal.Signals
) -> None:
    terminal.wait_for("1 running trial")
    terminal.process.send_signal(how)
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.shown
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rfind("\x1b[?25l")


def test_in_a_pipe_a_finished_experiment_is_one_line(confirmed) -> None:
    done = CliRunner().invoke(acuity, ["status", "tiny", "--watch", "--storage", confirmed.url])
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    assert re.match(r"Cardiomegaly 24/24 AUC 0\.\d{3}; Nodule 24/24 ", line)
    assert "Nodule retrained " in line
    assert line.endswith("; done")


def test_it_waits_for_workers_that_start_later(
    running: Registered, database: Database, environment: dict[str, str]
) -> None:
    _end_running(database, running.experiment.labels[1])
    with subprocess.Popen(
        [*ACUITY, "status", "tiny", "--watch"], env=environment, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().endswith("; Nodule 1/24 AUC 0.750; no trial runs now\n")
        time.sleep(1)
        assert watching.poll() is None
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=60) == 0


def test_a_launch_shows_its_workers_and_the_speed_of_their_trials(running: Registered, database: Database) -> None:
    (trial,) = database.storage.get_all_trials(_study_id(database, "Nodule"), states=(TrialState.RUNNING,))
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    with live_progress(database, console, images=1_000_000) as live:
        for epoch in range(3):
            if epoch:
                database.storage.set_trial_intermediate_value(trial._trial_id, epoch, 0.6)
            assert live.look(running.experiment, workers=2).running
        assert not live.is_due(), "too soon"
    shown = console.file.getvalue().rpartition("tiny: ")[2]  # type: ignore[attr-defined]
    assert shown.startswith("2 workers, time left: estimating")
    assert "images/s" in shown
    assert re.search(r"2/2 +0\.600 +[\d,]{5,} ", shown)
