"""Locks of the fleet: rows of the table acuity.locks. A role that only reads can lock none of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import SystemRandom

from sqlalchemy import Connection, Engine, text

SLOTS = ("slot 1", "slot 2", "slot 3")
"""A holder that needs a second connection also locks one of these rows.

PgBouncer with a pool of 4 connections then always has one left. Without this limit 4 holders of 4 studies waited for a
fifth connection until PgBouncer ended them.
"""
MOVING = "storage move"
"""Name of the lock that a copy to another database holds in both."""
_LONGEST_PAUSE_S = 0.2
_TRY_LOCK = text(
    """
    with existing as (select from acuity.locks where name = :name),
        locked as (select from acuity.locks where name = :name for update skip locked),
        slot as (select from acuity.locks where name = any(:slots) limit 1 for update skip locked)
    select set_config('idle_in_transaction_session_timeout', :idle, true),
        exists (select from existing),
        exists (select from locked) and (not :needs_slot or exists (select from slot))
    """
)
_REMOVE = text("delete from acuity.locks where name = any(:names)")
_ADD = text("insert into acuity.locks (name) values (:name) on conflict do nothing")


@contextmanager
def hold_lock(
    engine: Engine, name: str, *, wait_s: float, longest_idle_s: float, nested: bool
) -> Iterator[Connection | None]:
    """Hold a lock during the block, and yield the connection that holds it; None where others hold it for wait_s.

    longest_idle_s: the server ends the holder's transaction after this idle time; 0 means never. nested: the block uses
    other connections besides the yielded one. Not re-entrant.

    The lock is polled. A worker that waits inside the database keeps a connection that the holder may need: 12 workers
    on 5 connections deadlocked, and take 0.6 s with polling. A lost connection loses the lock; the block then raises,
    at its end at the latest.
    """
    parameters = {
        "name": name,
        "slots": list(SLOTS),
        "needs_slot": nested,
        "idle": f"{round(longest_idle_s * 1000)}ms",
    }
    deadline = time.monotonic() + wait_s
    pause_s = 0.005
    while True:
        with engine.begin() as connection:
            _, exists, locked = connection.execute(_TRY_LOCK, parameters).one()
            if locked:
                yield connection
                return
        if not exists:
            with engine.begin() as connection:
                connection.execute(_ADD, {"name": name})
            continue
        if time.monotonic() > deadline:
            break
        time.sleep(SystemRandom().uniform(0, pause_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    yield None


def study_lock(study_id: int) -> str:
    """Name of the lock on a study's number of trials."""
    return f"study {study_id}"


def note_lock(study_id: int) -> str:
    """Name of the lock on the dashboard's note of a study."""
    return f"note {study_id}"


def remove_study_locks(engine: Engine, study_id: int) -> None:
    """Remove the rows of a deleted study's locks."""
    with engine.begin() as connection:
        connection.execute(_REMOVE, {"names": [study_lock(study_id), note_lock(study_id)]})
