"""Claims of many workers on a real Postgres: budgets are exact, and no trial is lost."""

import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import psycopg2
import pytest
from optuna.trial import TrialState
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from acuity.storage.database import Database, open_storage
from acuity.storage.errors import StorageError
from acuity.storage.experiments import delete_experiment
from acuity.storage.trials import record_heartbeat
from acuity.study.config.loading import parse
from acuity.study.config.schema import Experiment
from acuity.study.registry import register as register_module
from acuity.study.registry import studies as studies_module
from acuity.study.registry.claims import Claim, claim_trial, open_studies
from acuity.study.registry.names import study_name
from acuity.study.registry.progress import find_failing_labels, read_progress
from acuity.study.registry.record import Registered, with_current_budget
from acuity.study.registry.recovery import release_trial
from acuity.study.registry.silence import HeartbeatWatch
from acuity.study.registry.studies import enqueue_trial, make_studies
from acuity.study.search.space import suggest
from support.image_identities import unfiltered
from support.silent_workers import requeue_silent

EXPERIMENT = """
name = "nih"
labels = ["Effusion", "Mass", "Nodule"]
data = { index = "a.csv", images = "images" }
training = { epochs = 5 }
workers = { max_retries = 2 }
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = 12
min_complete_per_resolution = 2
"""


def register(database: Database, toml: str = EXPERIMENT) -> Registered:
    experiment: Experiment = parse(tomllib.loads(toml), source="test")
    registered = Registered(experiment, (4, 6), unfiltered(), "mark")
    make_studies(database, registered)
    return registered


def claim(database: Database, registered: Registered, *, seed: int = 0) -> Claim | None:
    studies = open_studies(database, registered, sampler_seed=seed)
    return claim_trial(database, registered, studies, can_hold=lambda *_: True)


def work(url: str, registered: Registered, seed: int, run: Callable[[Database, Claim, optuna.Trial], None]) -> None:
    """Claim and run until nothing is left, as a worker does, without the training."""
    with open_storage(url) as database:
        studies = open_studies(database, registered, sampler_seed=seed)
        while True:
            taken = claim_trial(database, registered, studies, can_hold=lambda *_: True)
            if taken is None:
                if all(
                    p.finished >= registered.experiment.search.trials
                    for p in read_progress(database, registered.experiment)
                ):
                    return
                time.sleep(0.05)
                continue
            trial = optuna.Trial(taken.study, taken.trial_id)
            suggest(trial, registered.experiment, registered.exponents)
            run(database, taken, trial)


def test_eight_racing_workers_end_with_exactly_the_budget(database: Database, database_url: str) -> None:
    registered = register(database)

    def tell(_: Database, taken: Claim, trial: optuna.Trial) -> None:
        taken.study.tell(trial, 0.5 + 0.01 * trial.params["learning_rate"])

    threads = [threading.Thread(target=work, args=(database_url, registered, seed, tell)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for progress in read_progress(database, registered.experiment):
        assert (progress.finished, progress.running, progress.waiting, progress.failed) == (12, 0, 0, 0)
        study = optuna.load_study(storage=database.storage, study_name=study_name("nih", progress.label))
        done = Counter(trial.params["resolution"] for trial in study.trials)
        assert min(done.values()) >= 2
        assert len(done) == 2


def test_raising_the_budget_adds_exactly_the_difference(database: Database, database_url: str) -> None:
    def tell(_: Database, taken: Claim, trial: optuna.Trial) -> None:
        taken.study.tell(trial, 0.7)

    work(database_url, register(database), 0, tell)
    more = register(database, EXPERIMENT.replace("trials = 12", "trials = 15"))
    work(database_url, more, 1, tell)
    assert [progress.finished for progress in read_progress(database, more.experiment)] == [15, 15, 15]


def test_launch_that_was_interrupted_is_completed_by_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [_initial_trials(database, register(database))]
    cut = EXPERIMENT.replace('"nih"', '"cut"')
    left = iter(range(9))

    def breaks_off(*args: Any, **kwargs: Any) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return enqueue_trial(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(studies_module, "enqueue_trial", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            register(database, cut)
    taken = claim(database, Registered(parse(tomllib.loads(cut), source="test"), (4, 6), unfiltered(), "mark"))
    assert taken is not None, "a worker can claim a trial before the launch is complete"
    whole.append(_initial_trials(database, register(database, cut)))
    assert [len(trials) for trials in whole] == [3 * 4] * 2
    assert whole[0] == whole[1]
    assert _initial_trials(database, register(database, cut)) == whole[1], "another launch adds none"


def _initial_trials(database: Database, registered: Registered) -> list[tuple[str, str, dict[str, Any]]]:
    """(label, part of the plan, parameters) of every initial trial."""
    return [
        (label, trial.user_attrs["first"], trial.system_attrs["fixed_params"])
        for label in registered.experiment.labels
        for trial in optuna.load_study(
            storage=database.storage, study_name=study_name(registered.experiment.name, label)
        ).get_trials(deepcopy=False)
    ]


def test_running_workers_follow_the_budget_of_a_later_launch(database: Database) -> None:
    def launched(trials: int) -> Registered:
        toml = EXPERIMENT.replace("trials = 12", f"trials = {trials}")
        experiment = parse(tomllib.loads(toml), source="test")
        return register_module.register(database, experiment, unfiltered(), training_images=1280)

    at_start = launched(12)
    assert with_current_budget(database, at_start) == at_start
    launched(7)
    assert with_current_budget(database, at_start).experiment == launched(7).experiment


def test_worker_of_a_deleted_experiment_says_so(database: Database) -> None:
    """At its next claim, where it reports to a trial, and where it claims one meanwhile."""
    experiment = parse(tomllib.loads(EXPERIMENT), source="test")
    registered = register_module.register(database, experiment, unfiltered(), training_images=1280)
    claimed = claim(database, registered)
    assert claimed is not None
    delete_experiment(database, registered.experiment.name)
    with pytest.raises(StorageError, match=r"experiment \w+ is no longer in the database: it was deleted"):
        with_current_budget(database, registered)
    studies = {claimed.label: claimed.study}
    with pytest.raises(StorageError, match=rf"no longer has the study with id {claimed.study._study_id}: its experim"):
        claim_trial(database, registered, studies, can_hold=lambda *_: True)
    record_heartbeat(database, claimed.trial_id)
    for call in (
        lambda: database.storage.set_trial_intermediate_value(claimed.trial_id, 1, 0.5),
        lambda: release_trial(database, claimed, reason="its worker had to stop"),
    ):
        with pytest.raises(StorageError, match=rf"no longer has the trial with id {claimed.trial_id}: its experiment"):
            call()


def test_the_label_furthest_from_its_budget_is_next(database: Database) -> None:
    registered = register(database)
    for _ in range(3):
        taken = claim(database, registered)
        assert taken is not None
    running = {progress.label: progress.running for progress in read_progress(database, registered.experiment)}
    assert running == {"Effusion": 1, "Mass": 1, "Nodule": 1}


def shift_heartbeats(database: Database, by: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"update trial_heartbeats set heartbeat = heartbeat + ({by})"))


def let_heartbeat_expire(database: Database, trial_id: int) -> None:
    """Make the heartbeat an hour old, as if the worker had died."""
    with database.engine.begin() as connection:
        connection.execute(
            text("update trial_heartbeats set heartbeat = heartbeat - interval '1 hour' where trial_id = :trial_id"),
            {"trial_id": trial_id},
        )


def test_stale_trial_is_resumed_with_its_parameters_seed_and_batch(database: Database) -> None:
    registered = register(database)
    studies = open_studies(database, registered, sampler_seed=0)
    lost = claim(database, registered)
    assert lost is not None
    first = suggest(optuna.Trial(lost.study, lost.trial_id), registered.experiment, registered.exponents)
    for key, value in {"seed": 77, "batch_size": 24, "threads": 1, "precision": "fp32"}.items():
        database.storage.set_trial_user_attr(lost.trial_id, key, value)
    requeue_silent(database, registered, studies, grace_s=180)
    assert database.storage.get_trial(lost.trial_id).state is TrialState.RUNNING, "its heartbeat is fresh"
    let_heartbeat_expire(database, lost.trial_id)
    requeue_silent(database, registered, studies, grace_s=180)
    requeue_silent(database, registered, studies, grace_s=180)
    only = {label: study for label, study in studies.items() if label == lost.label}
    again = claim_trial(database, registered, only, can_hold=lambda *_: True)
    assert again is not None
    assert (again.origin, again.attempt) == (lost.number, 2)
    assert again.inherited["batch_size"] == 24
    assert again.training_seed(0) == lost.training_seed(0)
    second = suggest(optuna.Trial(again.study, again.trial_id), registered.experiment, registered.exponents)
    assert second == first
    [progress] = [entry for entry in read_progress(database, registered.experiment) if entry.label == lost.label]
    assert (progress.running, progress.failed) == (1, 0)


def test_a_running_trial_without_any_heartbeat_is_an_orphan(database: Database) -> None:
    registered = register(database)
    studies = open_studies(database, registered, sampler_seed=0)
    study = studies["Mass"]
    orphan = database.storage.create_new_trial(study._study_id)
    requeue_silent(database, registered, studies, grace_s=180)
    assert database.storage.get_trial(orphan).state is TrialState.FAIL


def test_killed_worker_is_found_though_the_databases_clock_is_set_back(database: Database) -> None:
    registered = register(database)
    studies = open_studies(database, registered, sampler_seed=0)
    lost, living = claim(database, registered), claim(database, registered)
    assert lost is not None
    assert living is not None
    shift_heartbeats(database, "interval '1 hour'")  # as if the clock was set back since
    clock = [1000.0]
    watch = HeartbeatWatch(180, clock=lambda: clock[0])
    for seconds in (0, 170, 11):
        clock[0] += seconds
        requeue_silent(database, registered, studies, grace_s=180, watch=watch)
        states = [database.storage.get_trial(trial.trial_id).state for trial in (lost, living)]
        assert states == [TrialState.FAIL if clock[0] > 1180 else TrialState.RUNNING, TrialState.RUNNING]
        record_heartbeat(database, living.trial_id)


def test_clock_that_is_set_forward_makes_no_worker_silent(database: Database) -> None:
    registered = register(database)
    studies = open_studies(database, registered, sampler_seed=0)
    living = claim(database, registered)
    assert living is not None
    clock = [5000.0]
    watch = HeartbeatWatch(180, clock=lambda: clock[0])
    requeue_silent(database, registered, studies, grace_s=180, watch=watch)
    clock[0] -= 3600  # the database's clock has gained an hour on this process's
    shift_heartbeats(database, "-interval '1 hour'")
    requeue_silent(database, registered, studies, grace_s=180, watch=watch)
    assert database.storage.get_trial(living.trial_id).state is TrialState.RUNNING
    clock[0] += 181
    requeue_silent(database, registered, studies, grace_s=180, watch=watch)
    assert database.storage.get_trial(living.trial_id).state is TrialState.FAIL, "no heartbeat has followed"


def test_worker_that_resumes_after_its_trial_was_requeued_cannot_tell_it(database: Database) -> None:
    registered = register(database)
    lost = claim(database, registered)
    assert lost is not None
    trial = optuna.Trial(lost.study, lost.trial_id)
    suggest(trial, registered.experiment, registered.exponents)
    let_heartbeat_expire(database, lost.trial_id)
    requeue_silent(database, registered, open_studies(database, registered, sampler_seed=0), grace_s=180)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("auc_se", 0.1)
    lost.study.tell(trial, 0.9, skip_if_finished=True)
    assert database.storage.get_trial(lost.trial_id).state is TrialState.FAIL


def test_trial_that_keeps_killing_its_workers_fails_and_is_replaced(database: Database) -> None:
    registered = register(database)
    studies = {"Mass": open_studies(database, registered, sampler_seed=0)["Mass"]}
    for _ in range(3):
        taken = claim_trial(database, registered, studies, can_hold=lambda *_: True)
        assert taken is not None
        suggest(optuna.Trial(taken.study, taken.trial_id), registered.experiment, registered.exponents)
        let_heartbeat_expire(database, taken.trial_id)
        requeue_silent(database, registered, studies, grace_s=180)
    last = database.storage.get_trial(taken.trial_id)
    assert "3 workers died on it" in last.user_attrs["reason"]
    [progress] = [entry for entry in read_progress(database, registered.experiment) if entry.label == "Mass"]
    assert (progress.failed, progress.running, progress.waiting) == (1, 0, 4), (
        "its resolution has another initial trial"
    )


def test_trial_is_not_lost_where_the_answer_to_its_last_statement_is(database: Database) -> None:
    """The server ends the trial, and the connection is lost before the worker knows it."""
    registered = register(database)
    taken = claim(database, registered)
    assert taken is not None

    def lose(*parts: Any) -> None:
        if "update public.trials" in parts[2]:
            event.remove(database.engine, "after_cursor_execute", lose)
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

    event.listen(database.engine, "after_cursor_execute", lose)
    with pytest.raises(OperationalError):
        release_trial(database, taken, reason="its worker had to stop")
    attempts = [
        trial for trial in taken.study.get_trials() if taken.number in (trial.number, trial.user_attrs.get("origin"))
    ]
    assert [trial.state for trial in attempts] == [TrialState.FAIL, TrialState.WAITING]


def test_released_trial_is_claimed_next_and_counts_no_retry(database: Database) -> None:
    registered = register(database)
    taken = claim(database, registered)
    assert taken is not None
    suggest(optuna.Trial(taken.study, taken.trial_id), registered.experiment, registered.exponents)
    release_trial(database, taken, reason="its worker had to stop")
    again = claim_trial(database, registered, {taken.label: taken.study}, can_hold=lambda *_: True)
    assert again is not None
    assert (again.origin, again.inherited["retries"]) == (taken.number, 0)


def test_device_that_cannot_hold_the_batch_leaves_the_trial_to_others(database: Database) -> None:
    registered = register(database)
    taken = claim(database, registered)
    assert taken is not None
    suggest(optuna.Trial(taken.study, taken.trial_id), registered.experiment, registered.exponents)
    database.storage.set_trial_user_attr(taken.trial_id, "batch_size", 512)
    release_trial(database, taken, reason="its worker had to stop")
    small = claim_trial(
        database, registered, {taken.label: taken.study}, can_hold=lambda _, batch_size: batch_size <= 64
    )
    large = claim_trial(database, registered, {taken.label: taken.study}, can_hold=lambda *_: True)
    assert small is not None
    assert large is not None
    assert small.origin == small.number != taken.number
    assert large.origin == taken.number


def test_five_failures_in_a_row_are_found_except_those_of_earlier_launches(database: Database) -> None:
    registered = register(database)
    experiment = registered.experiment
    for number in range(5):
        assert find_failing_labels(database, experiment, except_for=[]) == {}
        trial_id = database.storage.create_new_trial(
            open_studies(database, registered, sampler_seed=0)["Mass"]._study_id
        )
        database.storage.set_trial_user_attr(trial_id, "reason", f"number {number}")
        database.storage.set_trial_state_values(trial_id, TrialState.FAIL)
    assert find_failing_labels(database, experiment, except_for=[]) == {"Mass": "number 4"}
    assert find_failing_labels(database, experiment, except_for=[trial_id]) == {}
