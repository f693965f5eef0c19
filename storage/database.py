"""Open the Postgres of the fleet, and repeat calls during its outages."""

import logging
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import URL, Connection, Engine, Enum, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, InternalError, ProgrammingError
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from acuity.storage.connection import (
    OUTAGES,
    autocommitted,
    connection_arguments,
    end_public_search_path,
    engine_arguments,
    explain,
    first_line,
    is_denied,
    is_missing,
    is_outage,
    is_read_only,
    leave_read_only_servers,
    pin_settings,
    ping_after_idleness,
    settings_to_pin,
)
from acuity.storage.embedded.server import embedded_server
from acuity.storage.errors import OutageError, StorageError
from acuity.storage.schema.version import begin_schema, create_schema, has_schema
from acuity.storage.trial_counts import TrialCounts
from acuity.storage.trial_storage import TrialStorage
from acuity.storage.url import UNPINNED_VARIABLES, masked, parse_url

logger = logging.getLogger(__name__)
T = TypeVar("T")
_LONGEST_WAIT_S = 15.0
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
_EXPLAINED: tuple[type[Exception], ...] = (ProgrammingError, InternalError, *OUTAGES)


@dataclass(frozen=True, eq=False)
class Database:
    """An open storage: Optuna's storage, and the engine for SQL statements."""

    url: URL
    engine: Engine
    storage: TrialStorage
    """Optuna's cached storage: a trial took 0.12 s with it at 1,000 trials, and 7.4 s without the cache."""
    named_url: str | None = field(repr=False)
    """The URL as the user wrote it, perhaps with a password; None for the embedded server."""
    counts: TrialCounts = field(default_factory=TrialCounts, repr=False)
    """Numbers of trials that this process has counted."""

    def autocommitted(self) -> AbstractContextManager[Connection]:
        """A connection for statements that are complete in themselves: no transaction, one round trip each."""
        return autocommitted(self.engine)

    def environment(self) -> dict[str, str]:
        """Environment variables for a child process that opens the same storage.

        Every user of the host can read a command line, so the URL is not an argument.
        """
        return {} if self.named_url is None else {"ACUITY_STORAGE": self.named_url}


@contextmanager
def open_storage(url: str | None = None) -> Iterator[Database]:
    """Open the storage, make its tables where they are missing, and close it at the end of the block.

    url: of a Postgres; None means $ACUITY_STORAGE, else the embedded server. StorageError where it cannot be used,
    OutageError where it cannot be reached or an outage ends the block.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # by default Optuna logs every study and trial
    with ExitStack() as stack:
        named = url or os.environ.get("ACUITY_STORAGE") or None
        if not named:
            for variable in UNPINNED_VARIABLES:
                os.environ.pop(variable, None)
        parsed = parse_url(named) if named else stack.enter_context(embedded_server())
        try:
            settings = _make_tables(parsed)
            storage = _optuna_storage(parsed)
            pin_settings(storage.engine, settings)
        except (DBAPIError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            if not isinstance(cause, DBAPIError):
                raise
            raise explain(cause, parsed) from None
        ping_after_idleness(storage.engine)
        leave_read_only_servers(storage.engine)
        stack.callback(storage.engine.dispose)
        stack.callback(storage.remove_session)
        with explained_errors(parsed):
            yield Database(url=parsed, engine=storage.engine, storage=TrialStorage(storage), named_url=named)


@contextmanager
def explained_errors(url: URL) -> Iterator[None]:
    """Turn errors of the database at url into errors of one line: OutageError for an outage, else StorageError.

    `open_storage` does so for its block. A caller that keeps its block open does it for each of its own.
    """
    try:
        yield
    except _EXPLAINED as error:
        if is_denied(error):
            raise StorageError(
                f"{masked(url)}: {first_line(error)}: this user may not do that here. Use the tables' owner, or "
                "another user that may write"
            ) from error
        if is_read_only(error):
            raise StorageError(
                f"{masked(url)}: {first_line(error)}: a standby, or a user with default_transaction_read_only. "
                "Name the primary, and a user that may write"
            ) from error
        if is_missing(error):
            raise StorageError(
                f"{masked(url)}: {first_line(error)}: its tables are not those of Acuity and Optuna "
                f"{optuna.__version__}. Use another database"
            ) from error
        if not is_outage(error):
            raise
        raise OutageError(
            f"{masked(url)}: the database is away ({first_line(error)}). Bring it back, then run this again"
        ) from error


def _never() -> bool:
    return False


def _nothing() -> None:
    pass


def retry_outages(
    function: Callable[[], T],
    *,
    patience_s: float,
    give_up: Callable[[], bool] = _never,
    on_outage: Callable[[], None] = _nothing,
) -> T:
    """Call a storage function, and repeat it during an outage for at least patience_s; then raise OutageError.

    give_up: called several times a second, so that a worker that must stop does not wait for the database. on_outage:
    called after every attempt that failed because of an outage. A call that lost its connection may have taken effect:
    function must be safe to repeat.
    """

    def sleep(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not give_up() and time.monotonic() < deadline:
            time.sleep(min(0.2, seconds))

    def log(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        logger.warning("the database is away (%s), attempt %d", first_line(error), state.attempt_number)
        on_outage()

    retrying = Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
        stop=lambda state: give_up() or stop_after_delay(patience_s)(state),
        sleep=sleep,
        after=log,
    )
    try:
        return retrying(function)
    except RetryError as error:
        cause = error.last_attempt.exception()
        assert cause is not None
        waited = "this worker has to stop" if give_up() else f"waited {patience_s:.0f} s, which is the limit"
        raise OutageError(
            f"the database is away ({first_line(cause)}); {waited}. "
            "Bring it back and launch again: nothing stored is lost"
        ) from cause


def _make_tables(url: URL) -> str:
    """Make the tables of Optuna and Acuity where they are missing. One process makes them, the others wait for it.

    Returns the SQL of settings_to_pin.

    They poll. The process that makes the tables needs a second connection for Optuna's, and processes that wait inside
    the database would keep all those of a PgBouncer.
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
            time.sleep(random.uniform(0.05, 0.2))
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
    _optuna_storage(url, makes_tables=not existing).engine.dispose()


def _optuna_storage(url: URL, *, makes_tables: bool = False) -> RDBStorage:
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
