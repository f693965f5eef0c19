"""Make a role that reads all of Acuity's tables and writes none: for dashboards, notebooks and Grafana."""

import re
from collections.abc import Sequence

import psycopg2.extensions
from optuna.storages._rdb.models import BaseModel
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from acuity.storage.connection import first_line
from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.url import masked

_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_RESERVED = {"public", "none", "user", "current_user", "current_role", "session_user"}
# The rights of a role beyond reading, in words. Inherited rights count too.
_BEYOND_READING = text(
    """
    select 'be a superuser' from pg_roles where rolname = :role and rolsuper
    union all
    select 'write ' || c.oid::regclass from pg_class c
    where c.relkind in ('r', 'p') and c.relnamespace::regnamespace::text in ('public', 'acuity')
        and has_table_privilege(:role, c.oid, 'insert, update, delete, truncate')
    union all
    select 'make tables in schema ' || nspname from pg_namespace
    where nspname in ('public', 'acuity') and has_schema_privilege(:role, oid, 'create')
    """
)


def grant_reader(database: Database, role: str, *, password: str | None = None) -> bool:
    """Let a role read all of Acuity's tables, present and later ones, and nothing else. Make the role if it is missing.

    password: lets the role log in; a new role without one cannot log in, and is granted to other roles. Returns whether
    the role can log in. StorageError where the role can do more than read, or this user may not grant.
    """
    _check_name(role)
    try:
        with database.engine.begin() as connection:
            _make_role(connection, role, password)
            _grant(connection, role)
            _check_reads_only(connection, role)
            query = text("select rolcanlogin from pg_roles where rolname = :role")
            return bool(connection.scalars(query, {"role": role}).one())
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        raise StorageError(
            f"{masked(database.url)}: this user cannot make {role} a reader ({first_line(error)}). Run this as the "
            f"tables' owner with the right to make roles, or let an administrator `create role {role}` first, with its "
            "password if it is to log in"
        ) from None


def _check_name(role: str) -> None:
    if not _ROLE.fullmatch(role) or role.lower() in _RESERVED or role.startswith("pg_"):
        raise StorageError(
            f'"{role}" cannot be the name of a role: take letters, digits, _, . and -, beginning with a letter, 63 at '
            "most, and not pg_…"
        )


def _make_role(connection: Connection, role: str, password: str | None) -> None:
    exists = connection.scalar(text("select true from pg_roles where rolname = :role"), {"role": role})
    if exists:
        more = connection.execute(_BEYOND_READING, {"role": role}).scalars().all()
        if any(not each.startswith("make tables in schema public") for each in more):
            raise StorageError(_too_much(role, more))
    if exists and password is None:
        return
    words = ["alter role" if exists else "create role", _quoted(connection, role)]
    if password is not None:
        words += ["login password", f"'{_verifier(connection, role, password)}'"]
    connection.exec_driver_sql(" ".join(words))


def _verifier(connection: Connection, role: str, password: str) -> str:
    """The hash of a password that the server stores: the server's log and list of activities show each statement."""
    raw = connection.connection.driver_connection
    verifier: str = psycopg2.extensions.encrypt_password(password, role, scope=raw, algorithm="scram-sha-256")
    assert "'" not in verifier
    return verifier


def _grant(connection: Connection, role: str) -> None:
    reader = _quoted(connection, role)
    database = _quoted(connection, connection.scalars(text("select current_database()")).one())
    optunas = ", ".join(f"public.{name}" for name in [*BaseModel.metadata.tables, "alembic_version"])
    # Usually every role has these two rights, and only the owners may grant them.
    can_connect, sees_public = connection.execute(
        text(
            "select has_database_privilege(:role, current_database(), 'connect'), "
            "has_schema_privilege(:role, 'public', 'usage')"
        ),
        {"role": role},
    ).one()
    for statement in (
        *([] if can_connect else [f"grant connect on database {database} to {reader}"]),
        *([] if sees_public else [f"grant usage on schema public to {reader}"]),
        f"grant usage on schema acuity to {reader}",
        f"grant select on {optunas} to {reader}",
        f"grant select on all tables in schema acuity to {reader}",
        # The reader also reads the tables and views that these owners add later.
        *(
            f"alter default privileges for role {_quoted(connection, owner)} in schema acuity "
            f"grant select on tables to {reader}"
            for owner in connection.scalars(text("select distinct tableowner from pg_tables where schemaname='acuity'"))
        ),
    ):
        connection.exec_driver_sql(statement)


def _check_reads_only(connection: Connection, role: str) -> None:
    more = connection.execute(_BEYOND_READING, {"role": role}).scalars().all()
    if more == ["make tables in schema public"]:
        raise StorageError(
            "every role may make tables in schema public of this database, as before Postgres 15, and so may "
            f"{role}. As its owner run `revoke create on schema public from public`, then this again"
        )
    if more:
        raise StorageError(_too_much(role, more))


def _too_much(role: str, more: Sequence[str]) -> str:
    shown = ", ".join(more[:3])
    return f"{role} exists and may {shown}: that is no reader. Name another role, or take those rights from it"


def _quoted(connection: Connection, name: str) -> str:
    """The name as an SQL identifier. Percent signs are doubled for psycopg2."""
    return connection.dialect.identifier_preparer.quote_identifier(name).replace("%", "%%")
