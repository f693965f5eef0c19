"""Trainings of a confirmation on Postgres: racing workers, finalists, replaced failures, changed plans."""

import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from acuity.storage.database import Database, open_storage
from acuity.study.config.loading import parse
from acuity.study.confirmation.nomination import Nomination, Nominee
from acuity.study.confirmation.plan import check_retrainable, find_finalists, missing_trainings
from acuity.study.confirmation.trials import (
    claim_confirm_trial,
    create_confirm_study,
    has_unfinished_trainings,
    is_running_elsewhere,
    open_confirm_studies,
    read_plan,
)
from acuity.study.errors import UsageError
from acuity.study.registry.claims import Claim
from acuity.study.registry.record import Registered
from acuity.study.registry.recovery import release_trial
from acuity.study.registry.studies import make_studies
from acuity.study.results.status import ConfirmationProgress, read_confirmation_progress, read_running_trials
from acuity.study.search.space import suggest
from support.image_identities import unfiltered

EXPERIMENT = """
name = "nih"
labels = ["Mass"]
data = { index = "a.csv", images = "images" }
training = { epochs = 5 }
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = 12
min_complete_per_resolution = 2
"""


def nominee(number: int, resolution: int, *, batch_size: int = 32, auc: float = 0.7) -> Nominee:
    parameters = {
        "resolution": resolution, "architecture": "test_resnet", "learning_rate": 1e-3, "batch_size_exponent": 5
    }  # fmt: skip
    return Nominee(number, resolution, auc, parameters, batch_size, 64, seconds=1.0)


NOMINEES = (nominee(3, 32), nominee(1, 32), nominee(2, 32), nominee(7, 64), nominee(5, 64))
QUALITY = {3: 0.70, 1: 0.75, 2: 0.72, 7: 0.80, 5: 0.82}


@pytest.fixture
def registered(database: Database) -> Registered:
    registered = Registered(parse(tomllib.loads(EXPERIMENT), source="test"), (4, 6), unfiltered(), "mark")
    make_studies(database, registered)
    plan(database, registered, seeds=4)
    return registered


def plan(database: Database, registered: Registered, *, seeds: int, nominees: tuple[Nominee, ...] = NOMINEES) -> None:
    create_confirm_study(database, registered.experiment, Nomination("Mass", nominees, {32: 3, 64: 2}, ()), seeds=seeds)


def take(database: Database, registered: Registered, *, largest: int = 999) -> Claim | None:
    studies = open_confirm_studies(database, registered.experiment)
    return claim_confirm_trial(database, registered, studies, can_hold=lambda _, batch_size: batch_size <= largest)


def work(url: str, registered: Registered, run: Callable[[Database, Claim, optuna.Trial], None]) -> None:
    """Claim and end trials as a worker does, until no training is left."""
    with open_storage(url) as database:
        while True:
            studies = open_confirm_studies(database, registered.experiment)
            claim = claim_confirm_trial(database, registered, studies, can_hold=lambda *_: True)
            if claim is None:
                if not is_running_elsewhere(studies):
                    return
                time.sleep(0.02)
                continue
            trial = optuna.Trial(claim.study, claim.trial_id)
            suggest(trial, registered.experiment, registered.exponents)
            run(database, claim, trial)


def tell(_: Database, claim: Claim, trial: optuna.Trial) -> None:
    claim.study.tell(trial, QUALITY[claim.inherited["nominee"]] + 0.001 * claim.inherited["repeat"])


def runs(database: Database, registered: Registered) -> list[tuple[int, int]]:
    """(nominee, repeat) of each complete training."""
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted((trial.user_attrs["nominee"], trial.user_attrs["repeat"]) for trial in complete)


EXPECTED = sorted(
    [(number, 1) for number in QUALITY] + [(finalist, repeat) for finalist in (1, 5) for repeat in (2, 3, 4)]
)


def test_racing_workers_train_each_nominee_once_and_each_finalist_to_its_seeds(
    database: Database, database_url: str, registered: Registered
) -> None:
    threads = [threading.Thread(target=work, args=(database_url, registered, tell)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs(database, registered) == EXPECTED
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    assert read_plan(study).trainings() == len(EXPECTED) == len(study.trials)
    chosen = find_finalists(read_plan(study), study.trials)
    assert {resolution: each.nominee.number for resolution, each in chosen.items()} == {32: 1, 64: 5}
    assert [run.user_attrs["repeat"] for run in chosen[32].runs] == [1, 2, 3, 4]
    seeds = Counter(trial.user_attrs["seed"] for trial in study.trials)
    assert max(seeds.values()) == 1, "each training has another seed"


def test_status_counts_the_trainings(database: Database, database_url: str, registered: Registered) -> None:
    planned = ConfirmationProgress("Mass", complete=0, running=0, planned=11, seeds=4)
    assert read_confirmation_progress(database, registered.experiment) == [planned]
    claim = take(database, registered)
    assert claim is not None
    assert read_confirmation_progress(database, registered.experiment) == [replace(planned, running=1)]
    (running,) = read_running_trials(database, registered.experiment)
    assert running.label == "Mass (confirm)"
    tell(database, claim, optuna.Trial(claim.study, claim.trial_id))
    work(database_url, registered, tell)
    assert read_confirmation_progress(database, registered.experiment) == [replace(planned, complete=11)]


def test_more_seeds_add_the_missing_trainings_and_fewer_seeds_use_the_first(
    database: Database, database_url: str, registered: Registered
) -> None:
    work(database_url, registered, tell)
    plan(database, registered, seeds=6)
    work(database_url, registered, tell)
    assert runs(database, registered) == sorted([*EXPECTED, (1, 5), (1, 6), (5, 5), (5, 6)])
    plan(database, registered, seeds=3)
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    chosen = find_finalists(read_plan(study), study.trials)
    assert [run.user_attrs["repeat"] for run in chosen[64].runs] == [1, 2, 3]


def test_finalist_has_the_highest_mean_auc_of_search_and_retraining(
    database: Database, database_url: str, registered: Registered
) -> None:
    searched = {3: 0.76, 1: 0.70, 2: 0.72, 7: 0.70, 5: 0.67}
    nominees = tuple(replace(each, auc=searched[each.number]) for each in NOMINEES)
    plan(database, registered, seeds=3, nominees=nominees)
    work(database_url, registered, tell)
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    chosen = find_finalists(read_plan(study), study.trials)
    # At 32 px the means are .73, .725 and .72, and number 1 has the best retraining. At 64 px they are .75 and .745.
    assert {resolution: each.nominee.number for resolution, each in chosen.items()} == {32: 3, 64: 7}


def test_diverged_training_is_replaced_until_its_nominee_has_three_failures(
    database: Database, database_url: str, registered: Registered
) -> None:
    def run(_: Database, claim: Claim, trial: optuna.Trial) -> None:
        number, repeat = claim.inherited["nominee"], claim.inherited["repeat"]
        if number == 5 or (number, repeat) == (1, 2):
            database.storage.set_trial_user_attr(claim.trial_id, "reason", "the loss became NaN")
            claim.study.tell(trial, state=TrialState.PRUNED)
        else:
            tell(_, claim, trial)

    work(database_url, registered, run)
    done = runs(database, registered)
    assert [repeat for number, repeat in done if number == 1] == [1, 3, 4, 5]
    assert [repeat for number, repeat in done if number == 7] == [1, 2, 3, 4], "number 7 replaces number 5"
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    assert find_finalists(read_plan(study), study.trials)[64].nominee.number == 7
    assert len(study.get_trials(states=(TrialState.PRUNED,))) == 3 + 1, "number 5 is tried three times"


def test_resolution_without_retrainable_nominee_is_reported_and_the_others_are_retrained(
    database: Database, database_url: str, registered: Registered
) -> None:
    def run(_: Database, claim: Claim, trial: optuna.Trial) -> None:
        if trial.params["resolution"] == 64:
            tell(database, claim, trial)
            return
        database.storage.set_trial_user_attr(claim.trial_id, "reason", "the loss became NaN")
        claim.study.tell(trial, state=TrialState.PRUNED)

    work(database_url, registered, run)
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    assert list(find_finalists(read_plan(study), study.trials)) == [64]
    assert not has_unfinished_trainings(open_confirm_studies(database, registered.experiment)), (
        "another worker would find no training"
    )
    with pytest.raises(UsageError, match=r"no nominee at 32 px could be retrained \(the loss became NaN\)"):
        check_retrainable(read_plan(study), study.trials)


def test_trainings_that_a_later_plan_does_not_contain_are_not_run(
    database: Database, database_url: str, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(database, registered, seeds=9)
    while len(runs(database, registered)) < 7:  # the finalists are chosen and their seeds enqueued
        claim = take(database, registered)
        assert claim is not None
        trial = optuna.Trial(claim.study, claim.trial_id)
        suggest(trial, registered.experiment, registered.exponents)
        tell(database, claim, trial)
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    assert len(study.get_trials(states=(TrialState.WAITING,))) > 3
    other = nominee(9, 64)
    monkeypatch.setitem(QUALITY, 9, 0.9)
    plan(database, registered, seeds=4, nominees=(*NOMINEES[:3], NOMINEES[3], other))
    work(database_url, registered, tell)
    done = runs(database, registered)
    assert [repeat for number, repeat in done if number == 1] == [1, 2, 3, 4]
    assert [repeat for number, repeat in done if number == 9] == [1, 2, 3, 4]
    assert len([repeat for number, repeat in done if number == 5]) <= 2, "number 5 is not a nominee of the later plan"
    plan(database, registered, seeds=6)
    work(database_url, registered, tell)
    assert [repeat for number, repeat in runs(database, registered) if number == 1] == [1, 2, 3, 4, 5, 6]


def test_interrupted_training_keeps_its_nominee_repeat_seed_and_batch(
    database: Database, registered: Registered
) -> None:
    first = take(database, registered)
    assert first is not None
    release_trial(database, first, reason="the worker was stopped")
    second = take(database, registered)
    assert second is not None
    assert second.is_confirmation
    for key in ("nominee", "repeat", "seed", "batch_size"):
        assert second.inherited[key] == first.inherited[key], key
    assert (second.origin, second.attempt) == (first.number, 2)
    study = open_confirm_studies(database, registered.experiment)["Mass"]
    assert next(missing_trainings(read_plan(study), study.trials), None) is None, (
        "the second attempt replaces the first"
    )


def test_device_that_cannot_hold_the_batch_of_a_nominee_does_not_claim_it(
    database: Database, registered: Registered
) -> None:
    plan(database, registered, seeds=3, nominees=(nominee(0, 32, batch_size=64), nominee(1, 64, batch_size=16)))
    small = [take(database, registered, largest=16) for _ in range(3)]
    assert [claim.inherited["nominee"] for claim in small if claim] == [1]
    large = take(database, registered)
    assert large is not None
    assert large.inherited["nominee"] == 0
