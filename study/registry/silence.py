"""Recognise trials whose worker is silent, although the database's clock may be set back or forward."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import text

from acuity.storage.database import Database

_RUNNING = text(
    """
    select t.study_id, t.trial_id, h.heartbeat, extract(epoch from clock_timestamp())::double precision as now,
        extract(epoch from (clock_timestamp() at time zone 'utc') - h.heartbeat)::double precision as age_s
    from public.trials t left join public.trial_heartbeats h on h.trial_id = t.trial_id
    where t.study_id = any(:study_ids) and t.state = 'RUNNING' order by t.trial_id
    """
)


@dataclass(frozen=True)
class SilentTrial:
    """A running trial whose worker is silent. heartbeat: its last one in UTC; None where it never had one."""

    study_id: int
    trial_id: int
    heartbeat: datetime | None


@dataclass(eq=False)
class HeartbeatWatch:
    """Remembers the heartbeats that this process has seen, and when.

    A worker is silent if its heartbeat is older than grace_s by the database's clock, or has not changed for grace_s by
    this process's clock. The first rule needs one look. The second rule holds where the database's clock was set back
    and heartbeats lie in the future. Where a look shows that the database's clock was set, the first rule is suspended
    for grace_s: otherwise a clock that is set forward would make all workers silent.
    """

    grace_s: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[datetime | None, float]] = field(default_factory=dict)
    """By trial: the heartbeat, and this process's time when it was first seen."""
    _offset_s: float | None = None
    """The database's time less this process's."""
    _trusted_from: float = float("-inf")

    def find_silent(self, database: Database, study_ids: Collection[int]) -> list[SilentTrial]:
        """The running trials of these studies whose worker is silent. Each call must name all studies.

        The caller must have had contact with the database for grace_s: after an outage every heartbeat is old.
        """
        with database.autocommitted() as connection:
            rows = connection.execute(_RUNNING, {"study_ids": list(study_ids)}).all()
        now = self.clock()
        if rows:
            self._check_clock(rows[0].now, now)
        seen = {row.trial_id: self._seen.get(row.trial_id, (None, now)) for row in rows}
        self._seen = {
            row.trial_id: seen[row.trial_id] if seen[row.trial_id][0] == row.heartbeat else (row.heartbeat, now)
            for row in rows
        }
        return [
            SilentTrial(row.study_id, row.trial_id, row.heartbeat)
            for row in rows
            if row.heartbeat is None
            or (row.age_s > self.grace_s and now >= self._trusted_from)
            or now - self._seen[row.trial_id][1] > self.grace_s
        ]

    def _check_clock(self, database_now: float, now: float) -> None:
        offset_s = database_now - now
        if self._offset_s is not None and abs(offset_s - self._offset_s) > self.grace_s / 2:
            self._trusted_from = now + self.grace_s
        self._offset_s = offset_s


def is_still_silent(database: Database, silent: SilentTrial) -> bool:
    """Whether the trial still runs without a new heartbeat. The caller holds the study's claim lock."""
    with database.autocommitted() as connection:
        rows = connection.execute(_RUNNING, {"study_ids": [silent.study_id]}).all()
    return any((row.trial_id, row.heartbeat) == (silent.trial_id, silent.heartbeat) for row in rows)
