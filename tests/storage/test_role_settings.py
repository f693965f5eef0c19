"""A role, a database or a server may set Postgres otherwise than Acuity needs: its statements then do it themselves."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from sqlalchemy import URL, make_url, text

from acuity.storage.database import Database, open_storage
from acuity.storage.errors import StorageError
from acuity.storage.studies import create_study
from acuity.storage.trials import claim_study, record_heartbeat, start_trial
from support.postgres import query


@pytest.fixture(params=["repeatable read", "serializable"])
def isolated(request: pytest.FixtureRequest, database_url: str) -> Iterator[Database]:
    """A database whose transactions have another isolation level than Postgres's default."""
    _set(database_url, f"default_transaction_isolation = '{request.param}'")
    with open_storage(database_url) as database:
        yield database


def _set(url: str, setting: str) -> None:
    query(url, f"alter database {make_url(url).database} set {setting}")


def test_claim_counts_the_trials_that_others_committed_before_it_had_the_lock(isolated: Database) -> None:
    """Else two workers create trials of the same number, and a budget overruns."""
    study_id = _make_study(isolated)._study_id
    with claim_study(isolated, study_id, nested=False) as connection:
        with isolated.autocommitted() as other:
            start_trial(other, study_id)
        _, number = start_trial(connection, study_id)
    assert number == 1


def test_heartbeats_and_reports_of_a_trial_that_meet_all_take_effect(isolated: Database) -> None:
    """Else one of two that meet fails, since it "could not serialize access"."""
    study = _make_study(isolated)
    with claim_study(isolated, study._study_id, nested=False) as connection:
        trial_id, _ = start_trial(connection, study._study_id)
    together = threading.Barrier(4)

    def write(writer: int) -> None:
        for step in range(25):
            together.wait(timeout=60)
            if writer % 2:
                record_heartbeat(isolated, trial_id)
            else:
                isolated.storage.set_trial_intermediate_value(trial_id, 100 * writer + step, 0.5)

    with ThreadPoolExecutor(4) as pool:
        for written in [pool.submit(write, writer) for writer in range(4)]:
            written.result()
    assert len(isolated.storage.get_trial(trial_id).intermediate_values) == 50


@pytest.mark.parametrize("digits", [0, -10])
def test_numbers_keep_every_digit_where_the_database_shows_fewer(database_url: str, digits: int) -> None:
    """Else a trial that is resumed trains at another learning rate, and its AUC is another one."""
    _set(database_url, f"extra_float_digits = {digits}")
    with open_storage(database_url) as database:
        study = _make_study(database)
        trial = optuna.Trial(study, database.storage.create_new_trial(study._study_id))
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        trial.report(2 / 3, 1)
        study.tell(trial, math.pi / 4)
    with open_storage(database_url) as database:
        [found] = optuna.load_study(study_name="nih/a", storage=database.storage).trials
        with database.autocommitted() as connection:
            value = connection.scalars(text("select value from public.trial_values")).one()
    assert (found.params["learning_rate"], found.intermediate_values[1], found.value) == (rate, 2 / 3, math.pi / 4)
    assert value == math.pi / 4


def test_database_that_cannot_hold_every_character_is_refused_before_tables_are_made(server: URL) -> None:
    query(server, "create database latin encoding 'LATIN1' locale 'C' template template0")
    url = server.set(database="latin").render_as_string(hide_password=False)
    try:
        with (
            pytest.raises(StorageError, match=r"has the encoding LATIN1, must have UTF8.*createdb --encoding=UTF8"),
            open_storage(url),
        ):
            pass
        assert query(url, "select count(*) from pg_tables where schemaname in ('public', 'acuity')") == [(0,)]
    finally:
        query(server, "drop database latin with (force)")


def _make_study(database: Database) -> optuna.Study:
    return create_study(database, "nih/a", experiment="nih", label="a", confirm=False)
