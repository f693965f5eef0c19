"""Create the tables and views of the schema `acuity`, and refuse any other version of it."""

from psycopg2.errors import DuplicateTable, LockNotAvailable, UniqueViolation
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from acuity.storage.errors import StorageError
from acuity.storage.locks import MOVING, SLOTS
from acuity.storage.schema.answer_views import AUC_BY_RESOLUTION_VIEW, BEST_RESOLUTION_VIEW
from acuity.storage.schema.trials_view import TRIALS_VIEW

VERSION = 5
"""Version of the schema. Every change of the tables or views increments it."""
_BEGIN = """
set local lock_timeout = '20ms';
create schema if not exists acuity;
create table acuity.version (one boolean primary key default true check (one), version integer not null);
set local lock_timeout = '60s';
"""
# to_regclass would answer from this session's cache and miss a table that was created during the wait for the lock.
_RELATIONS = text(
    "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
    "where n.nspname = 'acuity' and c.relkind in ('r', 'p', 'v', 'm', 'f')"
)
# information_schema.columns hides the columns of a table that this user may not read.
_IS_OURS = text(
    """
    select count(*) = 2 from pg_attribute a join pg_class c on c.oid = a.attrelid
        join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'acuity' and c.relname = 'version' and a.attnum > 0 and not a.attisdropped
        and (a.attname, format_type(a.atttypid, null)) in (('one', 'boolean'), ('version', 'integer'))
    """
)
_TABLES = """
create table acuity.experiments (
    name text primary key,
    definition jsonb not null,
    created timestamptz not null default now()
);
create table acuity.registered_studies (
    study_name text primary key,
    experiment text not null,
    label text not null,
    confirm boolean not null,
    unique (experiment, label, confirm)
);
create table acuity.feasible_batches (
    device text,
    memory_budget_bytes bigint,
    architecture text,
    input_size integer,
    precision text,
    channels_last boolean,
    torch_version text,
    source_sha256 text,
    largest integer not null,
    created timestamptz not null default now(),
    primary key (
        device, memory_budget_bytes, architecture, input_size, precision, channels_last, torch_version, source_sha256
    )
);
create table acuity.confirmations (
    id bigint generated always as identity primary key,
    experiment text not null references acuity.experiments on delete cascade,
    protocol jsonb not null,
    protocol_sha256 text not null,
    split_sha256 text not null,
    frozen timestamptz not null default now(),
    asked timestamptz not null default now(),
    results jsonb,
    unique (experiment, protocol_sha256)
);
create table acuity.test_uses (
    id bigint generated always as identity primary key,
    split_sha256 text not null,
    experiment text not null,
    protocol_sha256 text not null,
    margin double precision not null,
    labels text[] not null,
    used timestamptz not null default now()
);
create table acuity.scores (
    experiment text not null references acuity.experiments on delete cascade,
    trial_id integer,
    index_sha256 text,
    fold integer,
    seed bigint not null,
    scored timestamptz not null default now(),
    parquet bytea not null,
    primary key (trial_id, index_sha256)
);
create table acuity.locks (name text primary key);
"""

# A view may read the views before it.
_VIEWS = (TRIALS_VIEW, AUC_BY_RESOLUTION_VIEW, BEST_RESOLUTION_VIEW)


def has_schema(connection: Connection) -> bool:
    """Whether the database has the schema; StorageError where it has another version, or another program's schema."""
    relations = sorted(connection.scalars(_RELATIONS))
    if not relations:
        return False
    if not connection.scalar(_IS_OURS):
        raise StorageError(
            f"another program has the schema acuity in this database (it has {', '.join(relations[:3])}). Use another "
            "database: createdb makes one"
        )
    version = int(connection.scalars(text("select version from acuity.version")).one())
    if version != VERSION:
        raise StorageError(
            f"the database's schema acuity has version {version}, this program needs {VERSION}: run the acuity-hpo "
            "that made it, or use another database"
        )
    return True


def begin_schema(connection: Connection) -> bool:
    """Create the first table within the caller's transaction; False where another process creates it meanwhile.

    Other processes get False until the end of the transaction, so that one process makes the tables. An advisory lock
    could be held by any role, also by one that only reads.
    """
    try:
        _run(connection, _BEGIN)
    except DBAPIError as error:
        if isinstance(error.orig, UniqueViolation | DuplicateTable | LockNotAvailable):
            return False
        raise
    return True


def create_schema(connection: Connection) -> None:
    """Create the other tables and the views in the transaction of begin_schema; Optuna's tables exist."""
    _run(connection, _TABLES)
    for view in _VIEWS:
        _run(connection, view)
    connection.execute(
        text("insert into acuity.locks (name) select unnest(cast(:names as text[]))"), {"names": [*SLOTS, MOVING]}
    )
    connection.execute(text("insert into acuity.version (version) values (:version)"), {"version": VERSION})


def _run(connection: Connection, sql: str) -> None:
    """Run SQL unchanged: text() would read its colons as parameters, psycopg2 its percent signs."""
    connection.exec_driver_sql(sql.replace("%", "%%"))
