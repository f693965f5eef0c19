"""The claim lock of a study, and a trial's heartbeat and user attributes."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.locks import hold_lock, study_lock

_LONGEST_WAIT_S = 120.0
_LONGEST_IDLE_S = 60
"""The server ends the holder's transaction after this idle time, so that a stopped process does not stop the fleet."""
_HEARTBEAT = text(
    "insert into public.trial_heartbeats (trial_id, heartbeat) "
    "values (:trial_id, clock_timestamp() at time zone 'utc') "
    "on conflict (trial_id) do update set heartbeat = excluded.heartbeat"
)
_STATE = text("select state::text, number from public.trials where trial_id = :trial_id for update")
_WRITE = text(
    "insert into public.trial_user_attributes (trial_id, key, value_json) "
    "select :trial_id, key, value from unnest(cast(:keys as text[]), cast(:values as text[])) as given (key, value) "
    "on conflict (trial_id, key) do update set value_json = excluded.value_json"
)


@contextmanager
def claim_study(database: Database, study_id: int) -> Iterator[None]:
    """Hold the study's claim lock during the block. Not re-entrant. StorageError after 120 s of waiting."""
    with hold_lock(
        database.engine, study_lock(study_id), wait_s=_LONGEST_WAIT_S, longest_idle_s=_LONGEST_IDLE_S, nested=True
    ) as held:
        if held is None:
            raise StorageError(
                f"study {study_id} has been claimed by others for {_LONGEST_WAIT_S:.0f} s: "
                "see which of the fleet's processes hang, and end them"
            )
        yield


def record_heartbeat(database: Database, trial_id: int) -> None:
    """Write the time of the database in UTC as the trial's heartbeat.

    Optuna's own method writes the session's local time. Behind PgBouncer the time zone of a session is not known.
    """
    with database.engine.begin() as connection:
        connection.execute(_HEARTBEAT, {"trial_id": trial_id})


def write_attributes(database: Database, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set all of these user attributes or none. UpdateFinishedTrialError where the trial has ended."""
    with database.engine.begin() as connection:
        state, number = connection.execute(_STATE, {"trial_id": trial_id}).one()
        if state not in ("RUNNING", "WAITING"):
            raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
        values = [json.dumps(value) for value in attributes.values()]
        connection.execute(_WRITE, {"trial_id": trial_id, "keys": list(attributes), "values": values})
