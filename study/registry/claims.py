"""Claim the trial that a worker runs next, within exact budgets.

A change of a study's number of trials needs the study's claim lock.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.trials import claim_study, record_heartbeat, start_trial
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, checkpoint_name
from acuity.study.search.initial_trials import fix_parameters
from acuity.study.search.space import make_sampler

INHERITED = (
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
    "fold",
    "folds",
    "folds_sha256",
)
"""The next attempt at a trial inherits these attributes, so that it ends with the uninterrupted trial's value."""

CanHold = Callable[[dict[str, Any], int], bool]
"""Whether (parameters, batch size) fit on this worker's device."""


@dataclass(frozen=True, eq=False)
class Claim:
    """A trial that this worker runs. Its trial_id is the database's, its number counts from 0 in the study."""

    label: str
    study: optuna.Study
    trial_id: int
    number: int
    inherited: dict[str, Any]
    running: int
    """Number of the study's trials that ran when the claim was made."""
    checkpoint_study: str
    """The study's name among the checkpoints."""

    @property
    def origin(self) -> int:
        """Number of the trial's first attempt, under which the checkpoints are stored."""
        return int(self.inherited.get("origin", self.number))

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return int(self.inherited.get("attempt", 1))

    @property
    def is_initial(self) -> bool:
        """Whether this is one of the enqueued initial trials. They are never pruned."""
        return "first" in self.inherited

    @property
    def is_confirmation(self) -> bool:
        """Whether this is a nominee's retraining: never pruned, at the nominee's batch size, with its network kept."""
        return "nominee" in self.inherited

    def training_seed(self, search_seed: int) -> int:
        """The training's seed, the same on every worker: from SHA-256 of search_seed, the study and the origin."""
        digest = hashlib.sha256(f"{search_seed}/{self.study.study_name}/{self.origin}".encode()).digest()
        return int.from_bytes(digest[:4])


def open_studies(database: Database, registered: Registered, *, sampler_seed: int) -> dict[str, optuna.Study]:
    """The study of every label. Each worker passes another sampler_seed: with one seed all would suggest the same."""
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
    """Claim a trial of the label furthest from its budget; None where ended and running trials fill every budget."""
    budget = registered.experiment.search.trials
    ids = {label: study._study_id for label, study in studies.items()}
    with database.autocommitted() as connection:
        counts = database.counts.read(connection, ids.values())
    started = {label: counts[study_id].started for label, study_id in ids.items()}
    open_labels = [label for label, trials in started.items() if trials < budget]
    SystemRandom().shuffle(open_labels)  # else workers that start together compete for the first of equal labels
    for label in sorted(open_labels, key=started.__getitem__):
        claim = None
        study, has_waiting = studies[label], counts[ids[label]].waiting > 0
        if not has_waiting:
            claim, has_waiting = _claim_new_trial(database, registered, label, study)
        if has_waiting:
            claim = _claim_in_study(database, registered, label, study, can_hold=can_hold)
        if claim is not None:
            return claim
    database.counts.forget()
    return None


def _claim_new_trial(
    database: Database, registered: Registered, label: str, study: optuna.Study
) -> tuple[Claim | None, bool]:
    """Create a trial unless the budget is full or trials wait; also returns whether they wait.

    One connection in one transaction: a fleet of a thousand workers claims twenty trials a second.
    """
    with claim_study(database, study._study_id, nested=False) as connection:
        counts = database.counts.read(connection, [study._study_id])[study._study_id]
        if counts.started >= registered.experiment.search.trials:
            return None, False
        if counts.waiting:
            return None, True
        trial_id, number = start_trial(connection, study._study_id)
    database.storage.heartbeat_written(trial_id)
    folder = checkpoint_name(registered, study.study_name, study._study_id)
    return Claim(label, study, trial_id, number, {}, counts.running, folder), False


def _claim_in_study(
    database: Database, registered: Registered, label: str, study: optuna.Study, *, can_hold: CanHold
) -> Claim | None:
    study.get_trials(deepcopy=False)  # fills Optuna's cache, so that the lock is held for milliseconds
    with claim_study(database, study._study_id) as connection:
        counts = database.counts.read(connection, [study._study_id])[study._study_id]
        if counts.started >= registered.experiment.search.trials:
            return None
        trial_id = _start_waiting(database, study, can_hold) if counts.waiting else None
        if trial_id is None:
            trial_id = database.storage.create_new_trial(study._study_id)
        else:
            fix_parameters(
                database, registered.experiment, registered.exponents, label=label, study=study, trial_id=trial_id
            )
        # Record it before the lock is released: a running trial without a heartbeat counts as an orphan.
        record_heartbeat(database, trial_id)
    return _make_claim(database, registered, label, study, trial_id, running=counts.running)


def claim_waiting_trial(
    database: Database, registered: Registered, label: str, study: optuna.Study, *, can_hold: CanHold
) -> Claim | None:
    """Claim a waiting trial of the study; create none. The caller holds the study's claim lock."""
    trial_id = _start_waiting(database, study, can_hold)
    if trial_id is None:
        return None
    record_heartbeat(database, trial_id)
    return _make_claim(database, registered, label, study, trial_id, running=0)


def _make_claim(
    database: Database, registered: Registered, label: str, study: optuna.Study, trial_id: int, *, running: int
) -> Claim:
    query = text(
        "select t.number, a.key, a.value_json from public.trials t left join public.trial_user_attributes a "
        "on a.trial_id = t.trial_id and a.key = any(:inherited) where t.trial_id = :trial_id"
    )
    with database.autocommitted() as connection:
        rows = connection.execute(query, {"inherited": list(INHERITED), "trial_id": trial_id}).all()
    inherited = {key: json.loads(value) for _, key, value in rows if key is not None}
    folder = checkpoint_name(registered, study.study_name, study._study_id)
    return Claim(label, study, trial_id, int(rows[0][0]), inherited, running, folder)


def _start_waiting(database: Database, study: optuna.Study, can_hold: CanHold) -> int | None:
    """Start the oldest waiting trial that fits on this device, interrupted ones first."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for trial in sorted(waiting, key=lambda trial: ("origin" not in trial.user_attrs, trial.number)):
        batch_size = trial.user_attrs.get("batch_size")
        if batch_size is not None and not can_hold(trial.system_attrs["fixed_params"], batch_size):
            continue
        if database.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return trial._trial_id
    return None
