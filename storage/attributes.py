"""Several attributes of a trial in one transaction; Optuna takes one transaction for each, and a trial has twenty."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from sqlalchemy import text

from storage.database import Database

_STATE = text("select state::text, number from trials where trial_id = :trial_id for update")
_WRITE = text(
    "insert into trial_user_attributes (trial_id, key, value_json) "
    "select :trial_id, key, value from unnest(cast(:keys as text[]), cast(:values as text[])) as given (key, value) "
    "on conflict (trial_id, key) do update set value_json = excluded.value_json"
)


def write_attributes(database: Database, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set all or none of these user attributes. UpdateFinishedTrialError where the trial has ended."""
    with database.engine.begin() as connection:
        state, number = connection.execute(_STATE, {"trial_id": trial_id}).one()
        if state not in ("RUNNING", "WAITING"):
            raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
        values = [json.dumps(value) for value in attributes.values()]
        connection.execute(_WRITE, {"trial_id": trial_id, "keys": list(attributes), "values": values})
