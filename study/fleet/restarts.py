"""The restart policy of a worker's process, on this host and in a Slurm job."""

import os
from dataclasses import dataclass, field
from enum import Enum, auto

_MAX_CRASHES = 3
_CRASH_WINDOW_S = 15 * 60
_CONNECTED_S = 60.0
"""A process that ran for longer had connected to the database."""


class NextStep(Enum):
    """What follows the end of a worker's process."""

    FINISH = auto()
    """The experiment has no more work for this worker."""
    REPORT_MISTAKE = auto()
    """The log explains the mistake. Another start would end in the same way."""
    RESTART = auto()
    """The worker crashed."""
    RESTART_LATER = auto()
    """The database is away."""
    GIVE_UP_CRASHES = auto()
    """The worker crashed too often."""
    GIVE_UP_OUTAGE = auto()
    """The database has been away for too long."""


@dataclass
class RestartPolicy:
    """The policy for one worker, and the past failures that it depends on."""

    outage_limit_s: float
    """The longest outage of the database."""
    crashes: list[float] = field(default_factory=list)
    """The times of the recent crashes."""
    away_since: float | None = None

    def next_step(self, status: int, *, began: float, now: float) -> NextStep:
        """The step after a process that ran from began to now.

        status: its exit status, negative where a signal ended it. began, now: in seconds, of a monotonic clock.
        """
        if status == 0:
            return NextStep.FINISH
        if status in (1, 2):
            return NextStep.REPORT_MISTAKE
        if status == os.EX_TEMPFAIL:
            if self.away_since is None or now - began > _CONNECTED_S:
                self.away_since = now
            over = now - self.away_since >= self.outage_limit_s
            return NextStep.GIVE_UP_OUTAGE if over else NextStep.RESTART_LATER
        self.crashes = [crash for crash in self.crashes if now - crash < _CRASH_WINDOW_S] + [now]
        return NextStep.GIVE_UP_CRASHES if len(self.crashes) > _MAX_CRASHES else NextStep.RESTART
