"""The storage opens for many workers at once, names its errors, and calls are retried through outages."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState
from sqlalchemy import URL, create_engine, event, make_url, text

from acuity.storage.connection import OUTAGES
from acuity.storage.database import Database, open_storage, retry_outages
from acuity.storage.embedded import server as server_module
from acuity.storage.embedded.server import embedded_server
from acuity.storage.errors import OutageError, StorageError
from acuity.storage.experiments import save_experiment
from acuity.storage.studies import create_study
from acuity.storage.trials import claim_study, record_heartbeat, write_attributes
from acuity.storage.url import parse_url
from support.postgres import query
from support.waiting import wait_until

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def administrator(server: URL) -> Iterator[Callable[[str], None]]:
    """Run a statement through another database than the test's."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")

    def execute(statement: str) -> None:
        with engine.connect() as connection:
            connection.execute(text(statement))

    yield execute
    engine.dispose()


@pytest.fixture
def outage(
    database: Database, administrator: Callable[[str], None]
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Two functions: begin an outage of the test's database, and end it."""
    name = database.url.database

    def begin() -> None:
        administrator(f"alter database {name} allow_connections false")
        administrator(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")

    def end() -> None:
        administrator(f"alter database {name} allow_connections true")

    yield begin, end
    end()


def _count(database: Database, table: str) -> int:
    with database.engine.connect() as connection:
        return int(connection.scalars(text(f"select count(*) from {table}")).one())


def test_workers_racing_on_an_empty_database_make_its_tables_once(empty_database_url: str) -> None:
    script = """
import os
from acuity.storage.database import open_storage
from sqlalchemy import text
with open_storage() as database, database.engine.connect() as connection:
    print(connection.scalar(text("select count(*) from acuity.all_trials")))
"""
    environment = os.environ | {"ACUITY_STORAGE": empty_database_url}
    workers = [
        subprocess.Popen([sys.executable, "-c", script], cwd=_ROOT, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(6)
    ]  # fmt: skip
    assert [worker.communicate() for worker in workers] == [("0\n", "")] * 6
    with open_storage(empty_database_url) as database:
        assert _count(database, "version_info") == _count(database, "alembic_version") == 1
        assert _count(database, "acuity.version") == 1


def test_embedded_server_is_opened_without_a_url(server: URL) -> None:
    with open_storage() as database:
        assert database.url == server
        optuna.create_study(storage=database.storage, study_name="default/Mass")
        optuna.delete_study(storage=database.storage, study_name="default/Mass")


def test_database_has_the_url_that_the_user_named_and_does_not_show_it(database_url: str) -> None:
    password = parse_url(database_url).password
    assert password
    with open_storage(database_url) as database:
        assert database.environment() == {"ACUITY_STORAGE": database_url}
        assert password not in repr(database)
    with open_storage() as database:
        assert database.environment() == {}


def test_optunas_storage_is_cached_and_has_a_heartbeat_interval(database_url: str) -> None:
    with open_storage(database_url) as database:
        assert isinstance(database.storage, _CachedStorage)
        assert database.storage._backend.heartbeat_interval == 30
        assert database.storage._backend.grace_period == 180


@pytest.mark.parametrize("where", ["server", "client"])
def test_workers_in_any_time_zone_see_a_fresh_heartbeat_as_fresh(
    where: str, database_url: str, administrator: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def move_to(zone: str) -> None:
        if where == "server":
            administrator(f"alter database {make_url(database_url).database} set timezone = '{zone}'")
        else:
            monkeypatch.setenv("PGTZ", zone)

    move_to("Asia/Tokyo")
    with open_storage(database_url) as database:
        study_id = optuna.create_study(storage=database.storage)._study_id
        record_heartbeat(database, database.storage.create_new_trial(study_id))
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        move_to(zone)
        with open_storage(database_url) as database, database.engine.connect() as connection:
            age_s = "select extract(epoch from (now() at time zone 'utc') - heartbeat) from trial_heartbeats"
            assert 0 <= float(connection.scalars(text(age_s)).one()) < 300


def test_braces_and_percent_signs_in_a_password_are_unchanged(
    database_url: str, administrator: Callable[[str], None]
) -> None:
    password = "{0}%(x)s{SCHEMA_VERSION}%41"
    administrator(f"create role braces superuser login password '{password}'")
    try:
        with open_storage(_with(database_url, username="braces", password=password)) as database:
            assert _count(database, "studies") == 0
    finally:
        administrator("drop role braces")


def _with(url: str, **fields: str) -> str:
    return make_url(url).set(**fields).render_as_string(hide_password=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("search_path", ['"$user", public', "acuity, public", "''", "elsewhere"])
def test_no_statement_depends_on_the_search_path(
    search_path: str, empty_database_url: str, administrator: Callable[[str], None]
) -> None:
    """The default begins with the schema of the user's name, which is acuity here."""
    administrator(f"alter database {make_url(empty_database_url).database} set search_path = {search_path}")
    with open_storage(empty_database_url) as database, database.engine.connect() as connection:
        assert connection.scalar(text("select current_user")) == "acuity"
    with open_storage(empty_database_url) as again:
        study = create_study(again, "nih/Mass", experiment="nih", label="Mass", confirm=False)
        with claim_study(again, study._study_id):
            trial_id = again.storage.create_new_trial(study._study_id)
            record_heartbeat(again, trial_id)
        write_attributes(again, trial_id, {"seed": 1})
        again.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])
        assert _count(again, "public.trials") == _count(again, "public.trial_heartbeats") == 1
        assert _count(again, "acuity.all_trials where seed = 1 and value = 0.5") == 1


@pytest.mark.parametrize(
    ("theirs", "match"),
    [
        ("create table alembic_version (version_num text); create table runs (run_uuid text)", "alembic_version in"),
        ("create table trials (id text)", "trials in"),
        ("create view studies as select 1 as study_id", "studies in"),
        ("create type trialstate as enum ('RUNNING')", "trialstate in"),
        ("create schema acuity; create table acuity.experiments (id text)", "it has experiments"),
        ("create schema acuity; create view acuity.all_trials as select 1 as number", "it has all_trials"),
        ("create schema acuity; create table acuity.version (version text)", "it has version"),
    ],
    ids=["MLflow", "table", "view", "type", "our schema's table", "our schema's view", "our schema's version"],
)
def test_database_with_another_programs_names_is_left_as_it_is(
    theirs: str, match: str, empty_database_url: str
) -> None:
    """MLflow keeps its version in alembic_version too. Nothing may be made before the check, and nothing left."""
    everything = (
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname in ('public', 'acuity') order by 1"
    )
    query(empty_database_url, theirs)
    before = query(empty_database_url, everything)
    with pytest.raises(StorageError, match=rf"another program.*{match}"), open_storage(empty_database_url):
        pass
    assert query(empty_database_url, everything) == before


def test_tables_and_views_of_other_names_are_kept_beside_acuitys(empty_database_url: str) -> None:
    query(
        empty_database_url,
        'create table experiments (id text); create table runs (id text); create view "my view" as select 1 as one',
    )
    for _ in range(2):
        with open_storage(empty_database_url):
            pass
        query(empty_database_url, 'create or replace view "of ours" as select * from acuity.best_resolution')
    assert query(empty_database_url, 'select * from "my view"') == [(1,)]
    assert query(empty_database_url, 'select * from "of ours"') == []


def test_missing_column_is_one_line_with_the_databases_words(database: Database, database_url: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("alter table acuity.experiments rename column definition to content"))
    words = r'column "definition" of relation "experiments" does not exist: its tables are not those of Acuity'
    with pytest.raises(StorageError, match=words), open_storage(database_url) as opened:
        save_experiment(opened, "nih", {})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"password": "wrongsecret"},
            r"does not accept that user and password \(.*password authentication failed.*\)\. Put them into the URL",
        ),
        ({"database": "nowhere"}, r"no such database \(.*\"nowhere\" does not exist\)\. Make it"),
        ({"username": "nobody"}, r"does not accept that user and password"),
    ],
)
def test_wrong_credentials_are_named_with_the_next_step(database_url: str, fields: dict[str, str], match: str) -> None:
    with pytest.raises(StorageError, match=match), open_storage(_with(database_url, **fields)):
        pass


@pytest.mark.parametrize(
    ("url", "match"),
    [
        (
            "postgresql://anna:secret@127.0.0.1:1/acuity",
            r":1/acuity: nothing listens there \(.*refused\)\. Start it",
        ),
        (
            "postgresql://anna:secret@no-such-host.invalid/acuity",
            r"no host of that name is known \(.*\)\. Check",
        ),
        ("postgresql://anna:secret@127.0.0.1:1/acuity?colour=red", r"option that Postgres does not know"),
        ("postgresql:///acuity?host=/nowhere", r"nothing listens there"),
        ("sqlite:///acuity.db", r"SQLite cannot"),
    ],
)
def test_unreachable_storage_is_one_line_without_its_password(url: str, match: str) -> None:
    with pytest.raises(StorageError, match=match) as caught, open_storage(url):
        pass
    assert "\n" not in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_host_that_does_not_answer_is_an_error_after_the_urls_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://anna:secret@127.0.0.1:{silent.getsockname()[1]}/acuity?connect_timeout=2"
        with (
            pytest.raises(StorageError, match=r"host does not answer \(.*expired\)\. Check"),
            open_storage(url),
        ):
            pass


@pytest.fixture
def guest(administrator: Callable[[str], None]) -> Iterator[Callable[[str], str]]:
    """A role without rights, as a function: URL of a database -> the same with the role and its password."""
    administrator("create role guest login password 'guest'")
    yield lambda url: _with(url, username="guest", password="guest")
    administrator("drop role guest")


def test_user_without_rights_gets_an_error_with_the_next_step(
    empty_database_url: str, guest: Callable[[str], str]
) -> None:
    refused = pytest.raises(StorageError, match=r"tables cannot be made \(permission denied")
    with refused, open_storage(guest(empty_database_url)):
        pass


@pytest.mark.usefixtures("database")
def test_user_that_may_not_read_the_tables_learns_how_it_may(database_url: str, guest: Callable[[str], str]) -> None:
    refused = pytest.raises(StorageError, match=r"may not read Acuity's tables.*grant-reader")
    with refused, open_storage(guest(database_url)):
        pass


@pytest.mark.usefixtures("database")
def test_read_only_storage_is_named_in_the_error(database_url: str, administrator: Callable[[str], None]) -> None:
    administrator(f"alter database {make_url(database_url).database} set default_transaction_read_only = on")
    message = r"read-only transaction: a standby, or a user with.*Name the primary"
    with pytest.raises(StorageError, match=message) as caught, open_storage(database_url) as closed:
        save_experiment(closed, "nih", {"images": "mine"})
    assert "mine" not in str(caught.value)


def test_tables_of_another_optuna_are_refused(database: Database, database_url: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = 'v0.9.0.a'"))
    message = r"have version v0\.9\.0\.a, Optuna .* needs .*optuna storage upgrade --storage URL"
    with pytest.raises(StorageError, match=message), open_storage(database_url):
        pass


def test_no_log_or_traceback_shows_the_password(
    database: Database, outage: tuple[Callable[[], None], Callable[[], None]]
) -> None:
    password = str(database.url.password)
    assert password not in repr(database) + repr(database.engine) + str(database.engine.url)
    outage[0]()
    with pytest.raises(OUTAGES) as caught:
        _count(database, "studies")
    assert password not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(StorageInternalError) as wrapped:
        database.storage.get_all_studies()
    assert password not in "".join(traceback.format_exception(wrapped.value))
    with pytest.raises(StorageError) as ended:
        retry_outages(database.storage.get_all_studies, patience_s=0)
    assert password not in "".join(traceback.format_exception(ended.value))


def test_idle_connections_cut_by_the_server_are_replaced_unnoticed(
    database: Database, outage: tuple[Callable[[], None], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=database.storage)
    begin, end = outage
    begin()
    end()
    monkeypatch.setattr("acuity.storage.connection._TRUSTED_S", 0.0)  # as if they had been idle since
    study.set_user_attr("after", 1)


@pytest.mark.parametrize("step", ["acuity.storage.database.make_tables", "nothing"])
def test_outage_at_any_step_of_opening_is_an_outage_error(
    step: str,
    database_url: str,
    outage: tuple[Callable[[], None], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, _ = outage
    begin()
    if step != "nothing":
        monkeypatch.setattr(step, lambda _: None)  # as if the outage began right after it
    with pytest.raises(OutageError, match="not currently accepting connections"), open_storage(database_url):
        pass


def test_call_is_repeated_until_the_outage_ends(
    database: Database, outage: tuple[Callable[[], None], Callable[[], None]]
) -> None:
    study = optuna.create_study(storage=database.storage)
    trial_id = database.storage.create_new_trial(study._study_id)
    outages: list[None] = []
    begin, end = outage
    begin()

    def back_at_the_second() -> None:
        outages.append(None)
        if len(outages) == 2:
            end()

    retry_outages(
        lambda: database.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5]),
        patience_s=600,
        on_outage=back_at_the_second,
    )
    assert len(outages) == 2
    assert [(trial.number, trial.value) for trial in study.trials] == [(0, 0.5)]


def test_connection_lost_between_two_statements_of_optuna_is_an_outage(
    database: Database, administrator: Callable[[str], None]
) -> None:
    study = optuna.create_study(storage=database.storage, study_name="cut")
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"seed": 1}))
    cuts: list[str] = []

    def cut(*arguments: Any) -> None:
        if "FROM public.trial_user_attributes" in arguments[2] and not cuts:
            cuts.append(arguments[2])
            administrator(
                f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database.url.database}'"
            )

    event.listen(database.engine, "before_cursor_execute", cut)
    backend = database.storage._backend  # type: ignore[attr-defined]  # the cached storage has the trial already
    outages: list[None] = []
    trials = retry_outages(
        lambda: backend.get_all_trials(study._study_id), patience_s=20, on_outage=lambda: outages.append(None)
    )
    assert [trial.value for trial in trials] == [0.5]
    assert len(outages) == 1


def test_outage_beyond_the_limit_is_one_line(
    database: Database, outage: tuple[Callable[[], None], Callable[[], None]]
) -> None:
    outage[0]()
    with pytest.raises(StorageError, match=r"the database is away \(.*not currently accepting.*waited 1 s") as caught:
        retry_outages(lambda: _count(database, "studies"), patience_s=1)
    assert "\n" not in str(caught.value)


def test_worker_that_has_to_stop_does_not_wait(
    database: Database, outage: tuple[Callable[[], None], Callable[[], None]]
) -> None:
    outage[0]()
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(StorageError, match="this worker has to stop"):
        retry_outages(lambda: _count(database, "studies"), patience_s=3600, give_up=stop.is_set)


@pytest.mark.parametrize("mistake", ["duplicate", "too long", "bug"])
def test_error_that_is_no_outage_is_raised_at_once(database: Database, mistake: str) -> None:
    study = optuna.create_study(storage=database.storage, study_name="nih/Mass")
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        if mistake == "duplicate":
            optuna.create_study(storage=database.storage, study_name="nih/Mass")
        elif mistake == "too long":
            study.set_user_attr("x" * 600, 1)
        else:
            raise KeyError(mistake)

    with pytest.raises((optuna.exceptions.DuplicatedStudyError, StorageInternalError, KeyError)):
        retry_outages(call, patience_s=600)
    assert len(calls) == 1


def test_connections_to_a_standby_are_dropped_after_a_failover(database: Database) -> None:
    study = optuna.create_study(storage=database.storage)
    for connection in [database.engine.connect() for _ in range(3)]:  # the pool now leads to a standby alone
        connection.execute(text("set session characteristics as transaction read only"))
        connection.commit()
        connection.close()
    outages: list[None] = []
    retry_outages(lambda: study.set_user_attr("after", 1), patience_s=600, on_outage=lambda: outages.append(None))
    assert study.user_attrs == {"after": 1}
    assert len(outages) == 1


def test_restarted_server_serves_the_storage_that_was_open(
    nothing_of_the_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_WATCH_S", 600.0)  # else a watcher starts the server before it is missed
    folder = Path(tempfile.mkdtemp(prefix="restart-", dir=nothing_of_the_users))
    folder.chmod(0o711)
    outages: list[None] = []
    with ExitStack() as stack:
        url = stack.enter_context(embedded_server(folder / "server"))
        database = stack.enter_context(open_storage(url.render_as_string(hide_password=False)))
        study = optuna.create_study(storage=database.storage)
        pid = folder / "server" / "data" / "postmaster.pid"
        os.kill(int(pid.read_text().split()[0]), signal.SIGINT)
        wait_until(lambda: not pid.exists())

        def restart() -> None:
            if not outages:
                stack.enter_context(embedded_server(folder / "server"))
            outages.append(None)

        retry_outages(lambda: study.set_user_attr("after", 1), patience_s=600, on_outage=restart)
        assert outages
        assert study.user_attrs == {"after": 1}
