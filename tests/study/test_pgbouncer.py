"""A fleet behind PgBouncer in transaction mode: each transaction of a worker may run in another session."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from sqlalchemy import URL, make_url, text

from acuity.storage.database import open_storage
from acuity.study.registry.claims import claim_trial, open_studies
from acuity.study.registry.progress import read_progress
from acuity.study.registry.record import Registered
from acuity.study.registry.studies import make_studies
from acuity.study.search.space import suggest
from acuity.study.worker.heartbeat import DatabaseContact, record_heartbeats
from support.image_identities import unfiltered
from support.pgbouncer import MISSING, pgbouncer
from support.postgres import query
from support.searched_experiment import EXPERIMENT, EXPONENTS
from support.silent_workers import requeue_silent

pytestmark = pytest.mark.skipif(MISSING, reason="pgbouncer is not installed (apt-get install pgbouncer)")
_WORKERS = 4
_POOL = 4
_TRIALS = 12


@pytest.fixture
def pooled_url(
    server: URL, empty_database_url: str, nothing_of_the_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An empty database of a server in New York with unusual settings, through a PgBouncer with 4 connections."""
    name = make_url(empty_database_url).database
    for setting in (
        "timezone = 'America/New_York'",
        "default_transaction_isolation = 'serializable'",
        "extra_float_digits = 0",
        "client_encoding = 'LATIN1'",
    ):
        query(server, f"alter database {name} set {setting}")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with pgbouncer(server, nothing_of_the_users / f"bouncer-{tmp_path.name}", pool=_POOL) as url:
        yield url.set(database=name).render_as_string(hide_password=False)


def test_workers_behind_pgbouncer_end_with_exactly_the_budget(pooled_url: str, server: URL) -> None:
    """The user is named acuity, as the schema is: it would come first in the default search path."""
    assert server.username == "acuity"
    with open_storage(pooled_url) as database:
        search = replace(EXPERIMENT.search, trials=_TRIALS)
        experiment = replace(EXPERIMENT, labels=("Effusion", "Mass", "胸水"), search=search)
        registered = Registered(experiment, EXPONENTS, unfiltered(), "mark")
        make_studies(database, registered)
    with ThreadPoolExecutor(_WORKERS) as pool:
        workers = [pool.submit(_work, pooled_url, registered, seed) for seed in range(_WORKERS)]
        assert sum(worker.result() for worker in workers) == _TRIALS * len(experiment.labels)
    with open_storage(pooled_url) as database, database.engine.connect() as connection:
        rows = connection.execute(text("select label, state from acuity.all_trials where state <> 'WAITING'"))
        assert Counter(tuple(row) for row in rows) == {(label, "COMPLETE"): _TRIALS for label in experiment.labels}, (
            "a trial of a living worker was failed"
        )


def test_twelve_processes_that_open_a_new_database_at_once_do_not_wait_for_each_other(pooled_url: str) -> None:
    """Each would keep one of the 4 connections and need a second one, until PgBouncer ends them."""
    began = threading.Barrier(12)

    def open_once() -> int:
        began.wait()
        with open_storage(pooled_url) as database, database.engine.connect() as connection:
            return int(connection.scalars(text("select count(*) from acuity.experiments")).one())

    for _ in ("tables are made", "tables are there"):
        with ThreadPoolExecutor(12) as pool:
            opened = [pool.submit(open_once) for _ in range(12)]
        assert [each.result() for each in opened] == [0] * 12


def _work(url: str, registered: Registered, seed: int) -> int:
    """Run trials as a worker does, without the training; returns their number."""
    contact = DatabaseContact(longest_gap_s=60)
    finished = 0
    with open_storage(url) as database:
        studies = open_studies(database, registered, sampler_seed=seed)
        while any(label.finished < _TRIALS for label in read_progress(database, registered.experiment)):
            requeue_silent(database, registered, studies, grace_s=60)
            claim = claim_trial(database, registered, studies, can_hold=lambda *_: True)
            if claim is None:
                time.sleep(0.05)
                continue
            with record_heartbeats(database, claim.trial_id, interval_s=0.05, contact=contact):
                trial = optuna.Trial(claim.study, claim.trial_id)
                suggest(trial, registered.experiment, registered.exponents)
                for step in range(1, 4):
                    trial.report(0.5 + step / 10, step)
                    time.sleep(0.05)
                claim.study.tell(trial, 0.8)
            finished += 1
    return finished
