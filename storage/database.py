"""Open the Postgres of the fleet, and repeat calls during its outages."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, InternalError, ProgrammingError
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from acuity.storage.connection import (
    OUTAGES,
    autocommitted,
    explain,
    first_line,
    is_denied,
    is_missing,
    is_outage,
    is_read_only,
    leave_read_only_servers,
    pin_settings,
    ping_after_idleness,
)
from acuity.storage.embedded.server import embedded_server
from acuity.storage.errors import OutageError, StorageError
from acuity.storage.tables import make_tables, open_optunas_storage
from acuity.storage.trial_counts import TrialCounts
from acuity.storage.trial_storage import TrialStorage
from acuity.storage.url import UNPINNED_VARIABLES, masked, parse_url

logger = logging.getLogger(__name__)
T = TypeVar("T")
_LONGEST_WAIT_S = 15.0
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
            settings = make_tables(parsed)
            storage = open_optunas_storage(parsed)
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
