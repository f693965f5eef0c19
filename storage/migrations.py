"""Our own tables and views in the schema `acuity`, brought up to date on open; a newer schema is refused."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from storage.answer_views import AUC_BY_RESOLUTION_VIEW, BEST_RESOLUTION_VIEW
from storage.errors import StorageError
from storage.trials_view import TRIALS_VIEW

# Step n makes version n out of version n - 1. A step that was released is never changed: another one is added, also
# where only a view has changed.
STEPS: tuple[str, ...] = (
    """
    create table acuity.experiments (
        name text primary key,
        definition jsonb not null,
        index_sha256 text not null,
        split_sha256 text not null,
        created timestamptz not null default now()
    )
    """,
    """
    create table acuity.feasible_batches (
        device text,
        memory_budget_bytes bigint,
        architecture text,
        input_size integer,
        precision text,
        channels_last boolean,
        torch_version text,
        largest integer not null,
        created timestamptz not null default now(),
        primary key (device, memory_budget_bytes, architecture, input_size, precision, channels_last, torch_version)
    )
    """,
    """
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
        scored timestamptz not null default now(),
        parquet bytea not null,
        primary key (trial_id, index_sha256)
    )
    """,
    # An earlier program would write an experiment without what its first launch has settled.
    """
    comment on column acuity.experiments.definition is 'the experiment''s file, and what its first launch has settled'
    """,
)

# Each may build on those before it.
VIEWS: tuple[str, ...] = (TRIALS_VIEW, AUC_BY_RESOLUTION_VIEW, BEST_RESOLUTION_VIEW)

_VERSION_ROW = """
create schema if not exists acuity;
create table acuity.version (one boolean primary key default true check (one), version integer not null);
insert into acuity.version (version) values (0);
"""

_SET_SEARCH_PATH = """
do $$
begin
    if not exists (
        select from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
        where d.datname = current_database() and s.setrole = current_user::regrole
            and array_to_string(s.setconfig, ' ') like '%search_path=%'
    ) then
        execute format('alter role %I in database %I set search_path = public', current_user, current_database());
    end if;
end
$$
"""


def is_current(connection: Connection) -> bool:
    """Whether the schema is at this program's version; StorageError where it is beyond."""
    version = _read_version(connection)
    if version is not None and version > len(STEPS):
        raise StorageError(
            f"the database's schema acuity has version {version}, this program knows {len(STEPS)} at most: "
            "update it (pip install --upgrade acuity-hpo), or use another database"
        )
    return version == len(STEPS)


def migrate(connection: Connection, *, steps: tuple[str, ...] = STEPS, views: Sequence[str] = VIEWS) -> None:
    """Bring the schema up to date within the caller's transaction, which holds a lock and has Optuna's tables made.

    Views hold nothing: they are dropped first, so that no step trips over them, and made anew.
    """
    version = _read_version(connection)
    if version is None:
        _run(connection, _VERSION_ROW)
        version = 0
    for view in connection.scalars(text("select viewname from pg_views where schemaname = 'acuity'")).all():
        _run(connection, f"drop view if exists acuity.{view} cascade")
    for step in steps[version:]:
        _run(connection, step)
    for view in views:
        _run(connection, view)
    connection.execute(text("update acuity.version set version = :version"), {"version": len(steps)})


def needs_search_path(connection: Connection) -> bool:
    """Whether this user is called acuity and so, by the default search path ("$user", public), sees our schema first.

    Optuna would take the view acuity.trials for its own table.
    """
    query = text("select current_user = 'acuity' and current_setting('search_path') like '%$user%'")
    return bool(connection.scalar(query))


def set_search_path(connection: Connection) -> None:
    """Let the user acuity see the schema public alone, in this database; for other tools than ours, too."""
    _run(connection, _SET_SEARCH_PATH)


def _read_version(connection: Connection) -> int | None:
    # Not to_regclass, which answers from this session's cache: blind to a table made while we waited for the lock.
    exists = "select exists (select from pg_tables where schemaname = 'acuity' and tablename = 'version')"
    if not connection.scalar(text(exists)):
        return None
    return int(connection.scalars(text("select version from acuity.version")).one())


def _run(connection: Connection, sql: str) -> None:
    """Run SQL as it stands: text() would take its colons for parameters, psycopg2 its percent signs."""
    connection.exec_driver_sql(sql.replace("%", "%%"))
