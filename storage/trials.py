"""The claim lock of a study, and a trial's heartbeat and user attributes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from acuity.storage.database import Database
from acuity.storage.errors import MissingError, StorageError
from acuity.storage.locks import hold_lock, study_lock

_LONGEST_WAIT_S = 120.0
_LONGEST_IDLE_S = 60
"""The server ends the holder's transaction after this idle time, so that a stopped process does not stop the fleet."""
_HEARTBEAT = text(
    "insert into public.trial_heartbeats (trial_id, heartbeat) "
    "select trial_id, clock_timestamp() at time zone 'utc' from public.trials where trial_id = :trial_id "
    "on conflict (trial_id) do update set heartbeat = excluded.heartbeat"
)
# The number is counted by a statement of its own, after the study's row is locked against other programs' trials.
_START = text(
    """
    select from public.studies where study_id = :study_id for update;
    with started as (
        insert into public.trials (study_id, number, state, datetime_start)
        select :study_id, coalesce((
            select number + 1 from public.trials where study_id = :study_id order by trial_id desc limit 1
        ), 0), 'RUNNING', clock_timestamp() at time zone 'utc'
        returning trial_id, number
    ), alive as (
        insert into public.trial_heartbeats (trial_id, heartbeat)
        select trial_id, clock_timestamp() at time zone 'utc' from started
    )
    select trial_id, number from started
    """
)


@contextmanager
def claim_study(database: Database, study_id: int, *, nested: bool = True) -> Iterator[Connection]:
    """Hold the study's claim lock during the block, and yield the connection that holds it.

    nested: the block uses other connections, as Optuna's calls do. Not re-entrant. StorageError after 120 s of waiting.
    """
    with hold_lock(
        database.engine, study_lock(study_id), wait_s=_LONGEST_WAIT_S, longest_idle_s=_LONGEST_IDLE_S, nested=nested
    ) as held:
        if held is None:
            raise StorageError(
                f"study {study_id} has been claimed by others for {_LONGEST_WAIT_S:.0f} s: "
                "see which of the fleet's processes hang, and end them"
            )
        yield held


def start_trial(connection: Connection, study_id: int) -> tuple[int, int]:
    """Create a running trial without parameters, with its heartbeat; returns its id and its number.

    connection: the one that holds the study's claim lock, without other connections. A running trial without a
    heartbeat would count as an orphan. MissingError where the study was deleted.
    """
    try:
        trial_id, number = connection.execute(_START, {"study_id": study_id}).one()
    except IntegrityError:
        raise MissingError("study", study_id) from None
    return int(trial_id), int(number)


def record_heartbeat(database: Database, trial_id: int) -> None:
    """Write the time of the database in UTC as the trial's heartbeat; nothing where the trial was deleted.

    Optuna's own method writes the session's local time. Behind PgBouncer the time zone of a session is not known.
    """
    with database.autocommitted() as connection:
        connection.execute(_HEARTBEAT, {"trial_id": trial_id})
    database.storage.heartbeat_written(trial_id)


def write_attributes(database: Database, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set all of these user attributes or none. UpdateFinishedTrialError where the trial has ended."""
    database.storage.write_user_attributes(trial_id, attributes)
