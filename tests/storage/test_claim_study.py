"""One worker at a time holds the claim of a study, and none can hold it for long."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, text

from acuity.storage import trials as storage_trials
from acuity.storage.connection import OUTAGES
from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.trials import claim_study


@pytest.fixture
def few_connections(database: Database) -> Iterator[Database]:
    """The same database with 5 connections."""
    engine = create_engine(database.url, pool_size=5, max_overflow=0, pool_timeout=60)
    yield replace(database, engine=engine)
    engine.dispose()


def test_claims_of_a_study_exclude_each_other_and_twelve_do_not_deadlock_on_five_connections(
    few_connections: Database,
) -> None:
    with few_connections.engine.begin() as connection:
        connection.execute(text("create table counter as select 0 as n"))

    def add_one() -> None:
        with claim_study(few_connections, 1):
            with few_connections.engine.connect() as connection:  # a connection other than the claim's, as Optuna's are
                n = connection.scalars(text("select n from counter")).one()
            time.sleep(0.005)
            with few_connections.engine.begin() as connection:
                connection.execute(text("update counter set n = :n"), {"n": n + 1})

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(add_one) for _ in range(36)]:
            done.result()
    with few_connections.engine.connect() as connection:
        assert connection.scalars(text("select n from counter")).one() == 36


def test_claims_of_several_studies_do_not_deadlock_on_four_connections(database: Database) -> None:
    """Each claim holds a connection and uses another one. The pool is that of a PgBouncer with 4 connections."""
    engine = create_engine(database.url, pool_size=4, max_overflow=0, pool_timeout=60)
    pooled = replace(database, engine=engine)

    def use_second_connection(study_id: int) -> None:
        with claim_study(pooled, study_id):
            time.sleep(0.02)
            with pooled.engine.connect() as connection:
                connection.execute(text("select 1"))

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(use_second_connection, study_id) for study_id in [*range(12)] * 3]:
            done.result()
    engine.dispose()


def test_claims_of_different_studies_do_not_wait_for_each_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_trials, "_LONGEST_WAIT_S", 0.0)
    with claim_study(database, 1), claim_study(database, 2):
        pass


def test_error_within_a_claim_ends_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_trials, "_LONGEST_WAIT_S", 0.0)
    with pytest.raises(KeyError, match="mine"), claim_study(database, 1):
        raise KeyError("mine")
    with claim_study(database, 1):
        pass


def test_claim_that_others_keep_is_refused_with_a_reason(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_trials, "_LONGEST_WAIT_S", 0.2)
    refused = pytest.raises(StorageError, match=r"study 1 has been claimed by others for 0 s: see which")
    with claim_study(database, 1), refused, claim_study(database, 1):
        pass


def test_killed_workers_claim_is_free(database: Database) -> None:
    script = """
from acuity.storage.trials import claim_study
from acuity.storage.database import open_storage
with open_storage() as database, claim_study(database, 1):
    print("claimed", flush=True)
    input()
"""
    environment = os.environ | {"ACUITY_STORAGE": database.url.render_as_string(hide_password=False)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:  # fmt: skip
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"claimed\n"
        worker.kill()
    with claim_study(database, 1):
        pass


def test_stopped_worker_loses_its_claim_and_gets_an_error(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_trials, "_LONGEST_IDLE_S", 1)
    taken = threading.Event()

    def take() -> None:
        with claim_study(database, 1):
            taken.set()

    with ThreadPoolExecutor(1) as other:
        stopped = pytest.raises(OUTAGES)
        with stopped, claim_study(database, 1):
            other.submit(take)
            taken.wait(60)  # no statement meanwhile, like a process that was stopped
    assert taken.is_set()
    with claim_study(database, 1):
        pass
