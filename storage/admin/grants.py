"""Make a role that reads all of Acuity's tables and writes none: for dashboards, notebooks and Grafana."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg2.extensions
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from acuity.storage.connection import first_line
from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.tables import OPTUNAS_TABLES
from acuity.storage.url import masked

_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_RESERVED = {"public", "none", "user", "current_user", "current_role", "session_user"}
# The rights of a role beyond reading, in words. `roles` are the role and, through any number of memberships, the roles
# whose rights it has or may take with `set role`. In Postgres 16 a membership may have both switched off.
_BEYOND_READING = text(
    """
    with recursive roles as (
        select oid, rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
        from pg_roles where rolname = :role
        union
        select r.oid, r.rolname, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls
        from roles join pg_auth_members m on m.member = roles.oid join pg_roles r on r.oid = m.roleid
    ), relations as (
        select c.oid, c.relkind, c.relowner, n.nspname || '.' || c.relname as name
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('public', 'acuity') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    ), rights as (
        select 1 as place, 'be a superuser' as word from roles where rolsuper
        union all
        select 2, 'make roles' from roles where rolcreaterole
        union all
        select 2, 'make databases' from roles where rolcreatedb
        union all
        select 2, 'replicate the server' from roles where rolreplication
        union all
        select 2, 'bypass row security' from roles where rolbypassrls
        union all
        select 3, 'act as ' || rolname from roles
        where rolname like 'pg\\_%' and rolname not in ('pg_read_all_data', 'pg_read_all_settings', 'pg_read_all_stats',
            'pg_stat_scan_tables', 'pg_monitor')
        union all
        select 4, 'change ' || c.name from relations c join roles on roles.oid = c.relowner
        union all
        select 5, 'write ' || c.name from relations c, roles
        where c.relkind <> 'S' and (
            has_table_privilege(roles.oid, c.oid,
                case when current_setting('server_version_num')::integer >= 170000 then 'maintain, ' else '' end
                || 'insert, update, delete, truncate, references, trigger')
            or has_any_column_privilege(roles.oid, c.oid, 'insert, update, references'))
        union all
        select 6, 'advance ' || c.name from relations c, roles
        where c.relkind = 'S' and has_sequence_privilege(roles.oid, c.oid, 'usage, update')
        union all
        select 7, 'make schemas in this database' from roles
        where has_database_privilege(roles.oid, current_database(), 'create')
        union all
        select 8, 'make tables in schema ' || nspname from pg_namespace n, roles
        where has_schema_privilege(roles.oid, n.oid, 'create')
            and (nspname = 'public' or nspname not like 'pg\\_%' and nspname <> 'information_schema')
    )
    select word from rights group by word order by min(place), word
    """
)
# Every role has these rights by default; an administrator takes them from all roles.
_OF_EVERY_ROLE = text(
    """
    select 'temporary tables' where has_database_privilege(:role, current_database(), 'temporary')
    union all
    select 'large objects' where exists (
        select from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any(:functions)
            and has_function_privilege(:role, p.oid, 'execute'))
    """
)
_LARGE_OBJECTS = (
    "lo_creat",
    "lo_create",
    "lo_from_bytea",
    "lo_put",
    "lowrite",
    "lo_open",
    "lo_truncate",
    "lo_truncate64",
)


@dataclass(frozen=True)
class Reader:
    """A role that reads all of Acuity's tables and writes none."""

    can_log_in: bool
    can_make: tuple[str, ...]
    """Objects that this role may make as every role of the database may: "temporary tables", "large objects"."""


def grant_reader(database: Database, role: str, *, password: str | None = None) -> Reader:
    """Let a role read all of Acuity's tables, present and later ones, and nothing else. Make the role if it is missing.

    password: lets the role log in; a new role without one cannot log in, and is granted to other roles. Takes from all
    roles of the database the rights to make temporary tables (and so functions) and large objects, as far as this user
    may: no command of Acuity needs them. StorageError where the role can do more than read, or this user may not grant.
    """
    _check_name(role)
    try:
        with database.engine.begin() as connection:
            _make_role(connection, role, password)
            _grant(connection, role)
            _check_reads_only(connection, role)
            _revoke_public(connection)
            query = text("select rolcanlogin from pg_roles where rolname = :role")
            can_log_in = bool(connection.scalars(query, {"role": role}).one())
            parameters = {"role": role, "functions": list(_LARGE_OBJECTS)}
            return Reader(can_log_in, tuple(connection.scalars(_OF_EVERY_ROLE, parameters)))
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
    optunas = ", ".join(f"public.{name}" for name in OPTUNAS_TABLES)
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


def _revoke_public(connection: Connection) -> None:
    """Take rights from the role public, as far as this user may: for the others Postgres only warns."""
    database = _quoted(connection, connection.scalars(text("select current_database()")).one())
    owns, is_superuser = connection.execute(
        text(
            "select pg_has_role(d.datdba, 'usage'), r.rolsuper from pg_database d, pg_roles r "
            "where d.datname = current_database() and r.rolname = current_user"
        )
    ).one()
    if owns:
        connection.exec_driver_sql(f"revoke temporary on database {database} from public")
    if is_superuser:
        functions = text(
            "select p.oid::regprocedure::text from pg_proc p "
            "where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any(:functions)"
        )
        for function in connection.scalars(functions, {"functions": list(_LARGE_OBJECTS)}).all():
            connection.exec_driver_sql(f"revoke execute on function pg_catalog.{function} from public")


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
