"""Make the tables of Optuna and Acuity in a database, and open Optuna's storage on them."""

import time
import warnings
from random import SystemRandom

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import URL, Connection, Enum, NullPool, create_engine, text
from sqlalchemy.exc import ProgrammingError

from acuity.storage.connection import (
    connection_arguments,
    end_public_search_path,
    engine_arguments,
    first_line,
    settings_to_pin,
)
from acuity.storage.errors import StorageError
from acuity.storage.schema.version import begin_schema, create_schema, has_schema
from acuity.storage.url import masked

_LONGEST_MAKING_S = 60.0
_HEARTBEAT_S = 30
_GRACE_S = 180
"""Age from which Optuna's tools call a heartbeat stale. Acuity's workers follow [workers] of the experiment."""
OPTUNAS_TABLES = (*BaseModel.metadata.tables, "alembic_version")
"""Names of Optuna's tables. No table or view of Acuity has one of them, see tests/storage/test_schema_version.py."""
_OPTUNAS_INDEXES = tuple(
    str(index.name) for table in BaseModel.metadata.tables.values() for index in table.indexes if index.name
)
_OPTUNAS_TYPES = tuple(
    {
        column.type.name
        for table in BaseModel.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, Enum) and column.type.name
    }
)


def make_tables(url: URL) -> str:
    """Make the tables of Optuna and Acuity where they are missing; returns the SQL of `settings_to_pin`.

    One process makes them, the others poll. The process that makes them needs a second connection for Optuna's tables,
    and processes that wait inside the database would keep all those of a PgBouncer. StorageError where the database
    cannot be used, or where another process has been making the tables for 60 s.
    """
    engine = create_engine(url, poolclass=NullPool, connect_args=connection_arguments(url))
    deadline = time.monotonic() + _LONGEST_MAKING_S
    try:
        while True:
            with engine.connect() as connection:
                if has_schema(connection):
                    return settings_to_pin(connection)
                _check_encoding(connection, url)
            try:
                with engine.connect() as connection, connection.begin() as transaction:
                    if begin_schema(connection):
                        _make_optunas_tables(connection, url)
                        create_schema(connection)
                        continue
                    transaction.rollback()
            except ProgrammingError as error:
                if not isinstance(error.orig, InsufficientPrivilege):
                    raise
                raise StorageError(
                    f"{masked(url)}: its tables cannot be made ({first_line(error)}). "
                    "Let its owner run a command of acuity first, or grant this user create on it and its schema public"
                ) from None
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{masked(url)}: another process has been making its tables for {_LONGEST_MAKING_S:.0f} s. "
                    "Try again"
                )
            time.sleep(SystemRandom().uniform(0.05, 0.2))
    finally:
        engine.dispose()


def _check_encoding(connection: Connection, url: URL) -> None:
    """StorageError unless the database can hold every character. Labels may have any."""
    encoding = connection.scalars(text("select current_setting('server_encoding')")).one()
    if encoding != "UTF8":
        raise StorageError(
            f"{masked(url)}: this database has the encoding {encoding}, must have UTF8, since labels may have any "
            "character. Make another one: createdb --encoding=UTF8 --locale=C --template=template0 NAME"
        )


def _make_optunas_tables(connection: Connection, url: URL) -> None:
    """Make Optuna's tables in the schema public; StorageError where another program uses the names of Optuna's."""
    query = text(
        "select c.relname, c.relkind from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = 'public' and c.relname = any(:names) union all "
        "select t.typname, 'type' from pg_type t join pg_namespace n on n.oid = t.typnamespace "
        "where n.nspname = 'public' and t.typname = any(:types) and t.typtype = 'e'"
    )
    names = {"names": [*OPTUNAS_TABLES, *_OPTUNAS_INDEXES], "types": list(_OPTUNAS_TYPES)}
    kinds = {row.relname: row.relkind for row in connection.execute(query, names)}
    existing = set(kinds)
    if existing and kinds.get("version_info") != "r":
        raise StorageError(
            f"{masked(url)}: another program uses names of Optuna's tables ({', '.join(sorted(existing)[:3])} in "
            "schema public). Use another database: createdb makes one"
        )
    # It raises where they are another version's, before Acuity's tables are added.
    open_optunas_storage(url, makes_tables=not existing).engine.dispose()


def open_optunas_storage(url: URL, *, makes_tables: bool = False) -> RDBStorage:
    """Optuna's storage; StorageError where its tables are those of another version of Optuna.

    Optuna's own check holds a connection while it uses another one. With a PgBouncer of 4 connections, 4 workers that
    started together waited for each other until it ended them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, since Optuna 2.9
        storage = RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=engine_arguments(url),
            skip_compatibility_check=True,
            heartbeat_interval=_HEARTBEAT_S,
            grace_period=_GRACE_S,
            skip_table_creation=not makes_tables,
        )
    current, needed = storage.get_current_version(), storage.get_head_version()
    if current != needed:
        storage.engine.dispose()
        raise StorageError(
            f"{masked(url)}: Optuna's tables have version {current}, Optuna {optuna.__version__} needs {needed}: "
            "run `optuna storage upgrade --storage URL` or install the Optuna of these tables"
        )
    end_public_search_path(storage.engine)
    return storage
