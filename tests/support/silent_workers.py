"""Requeue the trials of silent workers, as each worker does between two trials."""

from collections.abc import Mapping

import optuna

from acuity.storage.database import Database
from acuity.study.registry.record import Registered
from acuity.study.registry.recovery import requeue_silent_trials
from acuity.study.registry.silence import HeartbeatWatch


def requeue_silent(
    database: Database,
    registered: Registered,
    studies: Mapping[str, optuna.Study],
    *,
    grace_s: float,
    watch: HeartbeatWatch | None = None,
) -> None:
    """Look once at the heartbeats. watch: of earlier looks; by default this look is the first."""
    ids = [study._study_id for study in studies.values()]
    silent = (watch or HeartbeatWatch(grace_s)).find_silent(database, ids)
    requeue_silent_trials(database, registered, studies.values(), silent)
