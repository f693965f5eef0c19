"""A reader of the storage: every command that reads works as that role, and the server refuses every change."""

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator

import optuna
import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import URL, event, text

from acuity.storage.admin.grants import grant_reader
from acuity.storage.database import Database, open_storage
from acuity.storage.errors import StorageError
from acuity.storage.trials import claim_study
from acuity.storage.url import parse_url
from support import commands
from support.confirmed_experiment import repeat_search
from support.dashboards import running_dashboard
from support.postgres import query

READER, PASSWORD = "nih-reader", "it's: 100 % sécret"


@pytest.fixture
def reader_url(database_url: str, server: URL) -> Iterator[str]:
    """The URL for the role; the role is dropped after the test."""
    url = parse_url(database_url)
    yield url.set(username=READER, password=PASSWORD).render_as_string(hide_password=False)
    for name in (url.database, server.database):
        with contextlib.suppress(psycopg2.errors.UndefinedObject):
            query(server.set(database=name), f'drop owned by "{READER}"')
    query(server, f'drop role if exists "{READER}"')


def acuity(*arguments: str, storage: str | None, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    named = {"ACUITY_STORAGE": storage} if storage else {}
    done = commands.acuity(*arguments, environment=os.environ | named | variables, status=status)
    if status:
        assert done.stderr.count("\n") == 1, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done


@pytest.fixture
def searched(confirmed, database: Database) -> None:
    """An experiment with trials in this test's database."""
    repeat_search(database, confirmed.registered)


@pytest.mark.usefixtures("searched")
def test_reader_sees_answer_progress_and_dashboard_and_can_change_nothing(database_url: str, reader_url: str) -> None:
    for _ in range(2):  # granting again changes nothing
        granted = acuity("storage", "grant-reader", READER, storage=database_url, ACUITY_READER_PASSWORD=PASSWORD)
        assert f"{READER} may read all tables" in granted.stderr
        assert f"log in with postgresql://{READER}:***@" in granted.stderr

    for arguments in (("best", "tiny", "--format", "json"), ("best", "tiny", "--format", "csv"), ("status", "tiny")):
        mine, theirs = (acuity(*arguments, storage=url).stdout for url in (database_url, reader_url))
        assert mine == theirs
    with running_dashboard(environment=os.environ | {"ACUITY_STORAGE": reader_url}) as announced:
        base = announced.split()[0]
        with urllib.request.urlopen(f"{base}/api/studies") as answer:
            assert len(json.load(answer)["study_summaries"]) == 2
        with urllib.request.urlopen(f"{base}/api/studies/1") as answer:
            assert json.load(answer)["trials"]

    refused = acuity("delete", "tiny", "--yes", storage=reader_url, status=1)
    assert "permission denied" in refused.stderr
    assert "this user may not do that here" in refused.stderr
    with open_storage(reader_url) as opened:
        with opened.engine.connect() as connection:
            query = text("select schemaname, tablename from pg_tables where schemaname in ('public', 'acuity')")
            tables = connection.execute(query).all()
        for schema, table in tables:
            for change in ("delete from {}", "truncate {}", "drop table {}", "insert into {} default values"):
                _check_denied(opened, change.format(f"{schema}.{table}"))
    with open_storage(reader_url) as opened:
        for change in (
            "create table public.mine (a integer)",
            "create table acuity.mine (a integer)",
            "create schema mine",
            "update trials set state = 'FAIL'",
            "create role other",
            "create temporary table mine (a integer)",
            "create function pg_temp.mine() returns integer language sql return 1",
            "select lo_create(0)",
            "select lo_from_bytea(0, 'mine')",
            "select * from acuity.locks for update",
            "select * from public.studies for update",
            "lock table acuity.locks in row share mode",
            "lock table public.trials in share mode",
            "copy trials to program 'true'",
            "select pg_read_file('/etc/hostname')",
        ):
            _check_denied(opened, change)
    assert json.loads(acuity("best", "tiny", "--format", "json", storage=database_url).stdout)["labels"]


def _check_denied(opened: Database, change: str) -> None:
    with opened.engine.connect() as connection, pytest.raises(Exception, match=r"denied|must be owner") as refusal:
        connection.exec_driver_sql(change)
    assert isinstance(refusal.value.orig, InsufficientPrivilege), change


def test_reader_reads_later_tables_and_views_too(database: Database, reader_url: str) -> None:
    grant_reader(database, READER, password=PASSWORD)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("create table acuity.later (a integer)")
        connection.exec_driver_sql("create view acuity.later_view as select * from acuity.all_trials")
    with open_storage(reader_url) as opened, opened.engine.connect() as connection:
        for name in ("later", "later_view", "all_trials", "best_resolution", "auc_by_resolution"):
            connection.execute(text(f"select * from acuity.{name}"))


def test_role_without_a_password_cannot_log_in(database_url: str, reader_url: str, server: URL) -> None:
    said = acuity("storage", "grant-reader", READER, storage=database_url).stderr
    assert f"{READER} cannot log in. Grant it to a role that can" in said
    query(server, f"alter role \"{READER}\" password '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
    assert "is not permitted to log in). Give it a password" in acuity("best", "x", storage=reader_url, status=1).stderr
    query(server, f'alter role "{READER}" login')
    assert "There is none yet" in acuity("best", "x", storage=reader_url, status=1).stderr


def test_role_with_more_rights_is_refused_as_a_reader(database: Database, reader_url: str, server: URL) -> None:  # noqa: ARG001
    with pytest.raises(StorageError, match=r"acuity exists and may be a superuser"):
        grant_reader(database, "acuity")
    query(server, f'create role "{READER}" nologin')
    query(database.url, f'grant insert on trials to "{READER}"')
    with pytest.raises(StorageError, match=rf"{READER} exists and may write public.trials: that is no reader"):
        grant_reader(database, READER)
    query(database.url, f'revoke insert on trials from "{READER}"')
    query(database.url, "grant create on schema public to public")
    with pytest.raises(StorageError, match="run `revoke create on schema public from public`"):
        grant_reader(database, READER)
    query(database.url, "revoke create on schema public from public")
    assert not grant_reader(database, READER).can_log_in


_BEYOND = [
    ("grant pg_execute_server_program to {role}", "act as pg_execute_server_program"),
    ("grant pg_write_all_data to {role}", "act as pg_write_all_data"),
    ("grant between to {role}; grant acuity to between", "be a superuser, bypass row security, make databases"),
    ("grant between to {role}; grant pg_write_server_files to between", "act as pg_write_server_files"),
    ("grant between to {role}; alter table acuity.scores owner to between", "change acuity.scores"),
    ("alter role {role} createrole", "make roles"),
    ("alter role {role} createdb", "make databases"),
    ("alter role {role} replication", "replicate the server"),
    ("alter role {role} bypassrls", "bypass row security"),
    ("grant update (value_json) on public.trial_user_attributes to {role}", "write public.trial_user_attributes"),
    ("grant trigger on public.trials to {role}", "write public.trials"),
    ("grant maintain on public.trials to {role}", "write public.trials"),
    ("grant insert (name) on acuity.experiments to public", "write acuity.experiments"),
    ("grant usage on sequence public.trials_trial_id_seq to {role}", "advance public.trials_trial_id_seq"),
    ("grant create on database {database} to {role}", "make schemas in this database"),
]


@pytest.mark.parametrize(("right", "word"), _BEYOND)
def test_every_right_beyond_reading_is_found(
    right: str,
    word: str,
    database: Database,
    reader_url: str,  # noqa: ARG001
    server: URL,
) -> None:
    names = {"role": f'"{READER}"', "database": database.url.database}
    query(server, f"create role {names['role']} nologin")
    query(server, "create role between nologin")
    try:
        for statement in right.format(**names).split(";"):
            query(database.url, statement)
        with pytest.raises(StorageError, match=rf"{READER} exists and may {word}"):
            grant_reader(database, READER)
    finally:
        query(database.url, "reassign owned by between to acuity; drop owned by between; drop role between")


def test_reader_cannot_stop_claims(database: Database, reader_url: str) -> None:
    """Every role may take an advisory lock, so claims take none."""
    grant_reader(database, READER, password=PASSWORD)
    with open_storage(reader_url) as reader, reader.engine.begin() as connection:
        for statement in (
            f"select pg_advisory_xact_lock({0x4143_5543}, 1)",
            "lock table acuity.locks in access share mode",
            "lock table public.studies in access share mode",
            "lock table public.trials in access share mode",
        ):
            connection.exec_driver_sql(statement)
        study_id = optuna.create_study(storage=database.storage)._study_id
        with claim_study(database, study_id):
            database.storage.create_new_trial(study_id)


def test_owner_that_is_no_superuser_gets_a_list_of_what_every_role_may_make(
    empty_database_url: str,
    reader_url: str,  # noqa: ARG001
    server: URL,
) -> None:
    name = parse_url(empty_database_url).database
    query(server, "create role plain login createrole password 'plain'")
    query(server, f"alter database {name} owner to plain")
    try:
        plain = parse_url(empty_database_url).set(username="plain", password="plain")
        with open_storage(plain.render_as_string(hide_password=False)) as opened:
            assert grant_reader(opened, READER).can_make == ("large objects",)
        with open_storage(empty_database_url) as opened:
            assert grant_reader(opened, READER).can_make == ()
    finally:
        query(server.set(database=name), f'drop owned by "{READER}"')
        query(server, f"alter database {name} owner to acuity")
        query(server.set(database=name), "reassign owned by plain to acuity; drop owned by plain; drop role plain")


@pytest.mark.parametrize("name", ["", "pg_reader", "public", "1st", 'a"b', "a;drop table trials", "x" * 64, "none"])
def test_bad_name_is_refused_with_the_rule(database: Database, name: str) -> None:
    with pytest.raises(StorageError, match="cannot be the name of a role: take letters"):
        grant_reader(database, name)


def test_user_that_cannot_grant_gets_an_error_with_the_next_step(database: Database, reader_url: str) -> None:
    grant_reader(database, READER, password=PASSWORD)
    with open_storage(reader_url) as opened, pytest.raises(StorageError, match="cannot make other a reader") as refusal:
        grant_reader(opened, "other")
    assert "Run this as the tables' owner" in str(refusal.value)
    assert PASSWORD not in str(refusal.value)


def test_no_statement_to_the_server_has_the_password(database: Database, reader_url: str) -> None:  # noqa: ARG001
    statements = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(str(arguments[2:4])))
    grant_reader(database, READER, password=PASSWORD)
    assert any("SCRAM-SHA-256$" in statement for statement in statements)
    assert not any("sécret" in statement for statement in statements)


def test_embedded_server_has_no_readers() -> None:
    refused = acuity("storage", "grant-reader", READER, storage=None, status=1)
    assert "opens to this user alone" in refused.stderr
    assert "acuity storage move" in refused.stderr
