"""Copy every row of one database into an empty one, in one transaction, and compare the rows before it is committed.

A dump by pg_dump 18 does not load into an older server in one transaction, and does not compare the rows.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from typing import IO, Any

from optuna.storages._rdb.models import BaseModel
from psycopg2.errors import LockNotAvailable
from sqlalchemy import Connection, MetaData, String, Table, text
from sqlalchemy.exc import DBAPIError

from acuity.storage.errors import StorageError
from acuity.storage.locks import MOVING

_NOT_COPIED = ("version_info", "alembic_version", "version", "locks")
"""These tables are not copied. Both databases have their rows, since this program has opened both."""
_LOCK_WAIT_S = 20
_SPOOLED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Copied:
    """A table with the same rows in both databases."""

    table: str
    rows: int
    sha256: str
    """SHA-256 of the rows in the order of their keys, as Postgres's COPY writes them."""


@dataclass
class _Digest:
    """A file object for COPY that counts and hashes the rows, and keeps them in another file if there is one."""

    kept: IO[bytes] | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.rows += data.count(b"\n")  # one ends each row; COPY writes a line end within a value as \n
        if self.kept is not None:
            self.kept.write(data)


def copy_all(source: Connection, target: Connection) -> list[Copied]:
    """Copy all tables within the target's transaction, which the caller commits; StorageError where they then differ.

    A target that has exactly these rows is left as it is. StorageError where it has other rows. Until the end of both
    transactions no other process can write to either database.
    """
    tables = _tables(source)
    for connection in (source, target):
        connection.execute(text(f"set local lock_timeout = '{_LOCK_WAIT_S}s'"))
    _lock(source, target, tables)
    for connection in (source, target):
        _set_output_format(connection)
    filled = [table for table in tables if _has_rows(target, table)]
    if not filled:
        return [_copy(source, target, table) for table in tables]
    copied = [_digest(source, table) for table in tables]
    if copied != [_digest(target, table) for table in tables]:
        raise StorageError(_describe_content(target, filled))
    return copied


def check_no_other_move(source: Connection, target: Connection) -> None:
    """StorageError where both are one database, or another move of one of them is running.

    No other move can begin before both transactions end.
    """
    moving = text("select name from acuity.locks where name = :name for update skip locked")
    if not all(connection.scalar(moving, {"name": MOVING}) for connection in (source, target)):
        raise StorageError("source and target are one database, or another move is running: name another target")


def _tables(connection: Connection) -> list[Table]:
    """Optuna's tables and Acuity's, each after the tables that it refers to."""
    ours = MetaData()
    ours.reflect(connection, schema="acuity")
    return [
        table for table in [*BaseModel.metadata.sorted_tables, *ours.sorted_tables] if table.name not in _NOT_COPIED
    ]


def _lock(source: Connection, target: Connection, tables: list[Table]) -> None:
    names = ", ".join(map(_name, tables))
    try:
        source.exec_driver_sql(f"lock table {names} in share mode")
        target.exec_driver_sql(f"lock table {names} in exclusive mode")
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise StorageError(
                f"others have been writing to source or target for {_LOCK_WAIT_S} s: stop workers and launches there, "
                "then run this again"
            ) from None
        raise


def _set_output_format(connection: Connection) -> None:
    """Let both servers write values in the same format until the transaction ends, floats to the last bit."""
    for setting in ("extra_float_digits = 3", "datestyle = 'ISO'", "bytea_output = 'hex'", "client_encoding = 'UTF8'"):
        connection.exec_driver_sql(f"set local {setting}")


def _copy(source: Connection, target: Connection, table: Table) -> Copied:
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as rows:
        written = _digest(source, table, kept=rows)
        rows.seek(0)
        with _driver(target).cursor() as cursor:
            cursor.copy_expert(f"copy {_name(table)} ({_columns(table)}) from stdin", rows)
    read = _digest(target, table)
    if read != written:
        raise StorageError(
            f"table {_shown(table)} has {read.rows:,} rows after the copy (SHA-256 {read.sha256[:12]}), the source "
            f"{written.rows:,} ({written.sha256[:12]}): nothing was copied. See whether triggers change rows there"
        )
    _copy_sequences(source, target, table)
    return read


def _digest(connection: Connection, table: Table, *, kept: Any = None) -> Copied:
    # Collation "C", since servers order text by different locales.
    keys = [f'"{key.name}"' + (' collate "C"' if isinstance(key.type, String) else "") for key in table.primary_key]
    into = _Digest(kept)
    with _driver(connection).cursor() as cursor:
        cursor.copy_expert(
            f"copy (select {_columns(table)} from {_name(table)} order by {', '.join(keys)}) to stdout", into
        )
    return Copied(_shown(table), into.rows, into.sha256.hexdigest())


def _copy_sequences(source: Connection, target: Connection, table: Table) -> None:
    """Continue the source's sequences: the id of a deleted row is never used again."""
    for column in table.primary_key:
        query = text("select pg_get_serial_sequence(:table, :column)")
        name = source.scalar(query, {"table": _name(table), "column": column.name})
        if name is not None:
            last, is_called = source.execute(text(f"select last_value, is_called from {name}")).one()
            row = {"name": name, "last": last, "is_called": is_called}
            target.execute(text("select setval(:name, :last, :is_called)"), row)


def _describe_content(target: Connection, filled: list[Table]) -> str:
    names = list(target.scalars(text("select name from acuity.experiments order by created, name")))
    content = (
        f"the experiment{'s' if len(names) > 1 else ''} {', '.join(names)}"
        if names
        else f"rows in {', '.join(map(_shown, filled[:3]))}"
    )
    return (
        f"the target holds {content} already. The copy keeps the ids of studies and trials, since networks and "
        "protocols refer to them, so it needs an empty database. Make one on that server (createdb) and name it"
    )


def _has_rows(connection: Connection, table: Table) -> bool:
    return bool(connection.scalar(text(f"select exists (select from {_name(table)})")))


def _name(table: Table) -> str:
    return f'"{table.schema or "public"}"."{table.name}"'


def _shown(table: Table) -> str:
    return f"{table.schema or 'public'}.{table.name}"


def _columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
