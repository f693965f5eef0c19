"""Which trial a worker runs next, and how trials of dead workers are requeued: exact budgets, no trial is lost.

Everything that changes how many trials a study has happens under the study's claim lock.
"""

import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text

from storage.attributes import write_attributes
from storage.claim import claim_study
from storage.database import Database
from study.progress import spoken_for
from study.register import Registered, checkpoint_name, enqueue, study_name
from study.search import make_sampler
from study.settle import fix_parameters

logger = logging.getLogger(__name__)

# Attributes that the next attempt inherits, so that it ends with the value of the uninterrupted trial.
_INHERITED = (
    "origin",
    "seed",
    "batch_size",
    "precision",
    "threads",
    "first",
    "retries",
    "attempt",
    "nominee",
    "repeat",
)

CanHold = Callable[[dict[str, Any], int], bool]
"""Whether (parameters, batch size) fit on this worker's device."""


@dataclass(frozen=True, eq=False)
class Claim:
    """A trial that this worker runs."""

    label: str
    study: optuna.Study
    trial_id: int
    number: int
    inherited: dict[str, Any]
    running: int
    """Trials of this study that were running when the claim was made."""
    checkpoint_study: str
    """The study's name among the checkpoints."""

    @property
    def origin(self) -> int:
        """Number of the trial's first attempt: its checkpoints carry it."""
        return int(self.inherited.get("origin", self.number))

    @property
    def attempt(self) -> int:
        return int(self.inherited.get("attempt", 1))

    @property
    def first(self) -> bool:
        """One of the enqueued first trials, which are never pruned."""
        return "first" in self.inherited

    @property
    def confirms(self) -> bool:
        """A nominee's retraining: never pruned, at its own batch size, its network kept."""
        return "nominee" in self.inherited

    def training_seed(self, search_seed: int) -> int:
        """From the experiment's seed, the study and the origin's number: the same on every worker."""
        digest = hashlib.sha256(f"{search_seed}/{self.study.study_name}/{self.origin}".encode()).digest()
        return int.from_bytes(digest[:4])


def open_studies(database: Database, registered: Registered, *, sampler_seed: int) -> dict[str, optuna.Study]:
    """The study of every label, with this worker's own sampler: workers with one seed would suggest the same."""
    experiment = registered.experiment
    return {
        label: optuna.load_study(
            storage=database.storage,
            study_name=study_name(experiment.name, label),
            sampler=make_sampler(sampler_seed + position),
        )
        for position, label in enumerate(experiment.labels)
    }


def claim_trial(
    database: Database, registered: Registered, studies: Mapping[str, optuna.Study], *, can_hold: CanHold
) -> Claim | None:
    """Take a trial of the study that is furthest from its budget; None where every budget is spoken for."""
    budget = registered.experiment.search.trials
    taken = spoken_for(database, registered.experiment)
    open_labels = [label for label, trials in taken.items() if label in studies and trials < budget]
    random.shuffle(open_labels)  # else workers that start together compete for the first of equal labels
    for label in sorted(open_labels, key=taken.__getitem__):
        claim = _claim_in(database, registered, label, studies[label], can_hold=can_hold)
        if claim is not None:
            return claim
    return None


def _claim_in(
    database: Database, registered: Registered, label: str, study: optuna.Study, *, can_hold: CanHold
) -> Claim | None:
    study.get_trials(deepcopy=False)  # fills Optuna's cache, so that the lock is held for milliseconds
    with claim_study(database, study._study_id):
        finished, running, waiting = _count(database, study._study_id)
        if finished + running >= registered.experiment.search.trials:
            return None
        trial_id = _take_waiting(database, study, can_hold) if waiting else None
        if trial_id is None:
            trial_id = database.storage.create_new_trial(study._study_id)
        else:
            fix_parameters(
                database, registered.experiment, registered.exponents, label=label, study=study, trial_id=trial_id
            )
        # Still under the lock: under it, a running trial without a heartbeat is an orphan.
        database.heartbeats.record_heartbeat(trial_id)
    return _claim(database, registered, label, study, trial_id, running=running)


def start_waiting(
    database: Database, registered: Registered, label: str, study: optuna.Study, can_hold: CanHold
) -> Claim | None:
    """Take a waiting trial of the study; create none. The caller holds the study's claim lock."""
    trial_id = _take_waiting(database, study, can_hold)
    if trial_id is None:
        return None
    database.heartbeats.record_heartbeat(trial_id)
    return _claim(database, registered, label, study, trial_id, running=0)


def _claim(
    database: Database, registered: Registered, label: str, study: optuna.Study, trial_id: int, *, running: int
) -> Claim:
    query = text(
        "select t.number, a.key, a.value_json from trials t left join trial_user_attributes a "
        "on a.trial_id = t.trial_id and a.key = any(:inherited) where t.trial_id = :trial_id"
    )
    with database.engine.connect() as connection:
        rows = connection.execute(query, {"inherited": list(_INHERITED), "trial_id": trial_id}).all()
    inherited = {key: json.loads(value) for _, key, value in rows if key is not None}
    folder = checkpoint_name(registered, study.study_name, study._study_id)
    return Claim(label, study, trial_id, int(rows[0][0]), inherited, running, folder)


def _count(database: Database, study_id: int) -> tuple[int, int, int]:
    """Trials of a study that are finished, running and waiting."""
    query = text(
        "select count(*) filter (where state in ('COMPLETE', 'PRUNED')), count(*) filter (where state = 'RUNNING'), "
        "count(*) filter (where state = 'WAITING') from trials where study_id = :study_id"
    )
    with database.engine.connect() as connection:
        finished, running, waiting = connection.execute(query, {"study_id": study_id}).one()
    return int(finished), int(running), int(waiting)


def _take_waiting(database: Database, study: optuna.Study, can_hold: CanHold) -> int | None:
    """Start the oldest waiting trial that fits on this device, interrupted ones first."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for trial in sorted(waiting, key=lambda trial: ("origin" not in trial.user_attrs, trial.number)):
        batch_size = trial.user_attrs.get("batch_size")
        if batch_size is not None and not can_hold(trial.system_attrs["fixed_params"], batch_size):
            continue
        if database.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return trial._trial_id
    return None


def hand_back(database: Database, claim: Claim, *, reason: str) -> None:
    """Requeue an unfinished trial at once; another worker resumes it at its checkpoint. This counts as no retry."""
    with claim_study(database, claim.study._study_id):
        trial = database.storage.get_trial(claim.trial_id)
        if trial.state is TrialState.RUNNING:
            _requeue(database, claim.study, trial, reason=reason, retries=int(trial.user_attrs.get("retries", 0)))


def reap(database: Database, registered: Registered, studies: Mapping[str, optuna.Study], *, grace_s: float) -> None:
    """Requeue every trial of the experiment without a heartbeat for grace_s, or fail it after too many retries.

    The caller must have had contact with the database for grace_s: after an outage every heartbeat is old.
    """
    for study in studies.values():
        if not _silent_trials(database, study._study_id, grace_s=grace_s):
            continue
        with claim_study(database, study._study_id):
            for trial_id in _silent_trials(database, study._study_id, grace_s=grace_s):
                _reap_trial(database, registered, study, database.storage.get_trial(trial_id))


def _silent_trials(database: Database, study_id: int, *, grace_s: float) -> list[int]:
    query = text(
        """
        select t.trial_id from trials t left join trial_heartbeats h on h.trial_id = t.trial_id
        where t.study_id = :study_id and t.state = 'RUNNING'
            and (h.trial_id is null
                or h.heartbeat < (now() at time zone 'utc') - make_interval(secs => :grace_s))
        order by t.trial_id
        """
    )
    with database.engine.connect() as connection:
        rows = connection.execute(query, {"study_id": study_id, "grace_s": float(grace_s)})
        return [int(row[0]) for row in rows]


def _reap_trial(database: Database, registered: Registered, study: optuna.Study, trial: FrozenTrial) -> None:
    retries = int(trial.user_attrs.get("retries", 0)) + 1
    limit = registered.experiment.workers.max_retries
    if retries <= limit:
        logger.warning("%s trial %d: its worker is gone; another one takes it up", study.study_name, trial.number)
        _requeue(database, study, trial, reason="its worker is gone", retries=retries)
        return
    logger.error("%s trial %d: given up after %d workers died on it", study.study_name, trial.number, retries)
    fail(database, study, trial, reason=f"given up: {retries} workers died on it")


def fail(database: Database, study: optuna.Study, trial: FrozenTrial, *, reason: str) -> None:
    """End a trial as FAILED, outside the budget. A first trial is replaced by another at its resolution.

    The caller holds the study's claim lock.
    """
    if trial.state.is_finished():
        return
    part = trial.user_attrs.get("first")
    if part is not None:
        parameters = trial.params or trial.system_attrs["fixed_params"]
        again = {"resolution": parameters["resolution"]} if "resolution" in parameters else parameters
        enqueue(database, study, again, attributes={"first": part})
    _end(database, trial, {"reason": reason})


def _requeue(database: Database, study: optuna.Study, trial: FrozenTrial, *, reason: str, retries: int) -> None:
    """Enqueue the next attempt at a trial, then end this one. The caller holds the study's claim lock."""
    origin = int(trial.user_attrs.get("origin", trial.number))
    attempt = int(trial.user_attrs.get("attempt", 1)) + 1
    known = {key: trial.user_attrs[key] for key in _INHERITED if key in trial.user_attrs}
    successors = [
        other._trial_id
        for other in study.get_trials(deepcopy=False)
        if other.user_attrs.get("origin") == origin and other.user_attrs.get("attempt") == attempt
    ]
    if not successors:  # else a worker that died between the two steps has enqueued it
        successors = [
            enqueue(
                database,
                study,
                trial.system_attrs.get("fixed_params", {}) | trial.params,
                attributes=known | {"origin": origin, "attempt": attempt, "retries": retries},
            )
        ]
    if not _end(database, trial, {"requeued": True, "reason": reason}):
        # The worker has finished its trial meanwhile. No worker can have taken the successor under our lock.
        _end(database, database.storage.get_trial(successors[0]), {"requeued": True, "reason": "not needed after all"})


def drop(database: Database, trial: FrozenTrial, *, reason: str) -> None:
    """End a waiting trial that is no longer needed; it counts for nothing.

    The caller holds the study's claim lock.
    """
    _end(database, trial, {"requeued": True, "reason": reason})


def _end(database: Database, trial: FrozenTrial, attributes: dict[str, Any]) -> bool:
    """Write attributes, then FAIL the trial: a finished trial takes none. False where it had ended already."""
    try:
        write_attributes(database, trial._trial_id, attributes)
        database.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True
