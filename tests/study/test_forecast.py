"""The forecast of the time left uses the durations of finished trials, and rough ones before them."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from acuity.storage.database import Database
from acuity.study.config.loading import parse
from acuity.study.registry.register import register
from acuity.study.results.forecast import estimate_seconds, forecast_cost, read_trial_seconds, time_left
from acuity.study.results.pace import rough_trial_seconds
from acuity.study.results.status import read_status
from support.image_identities import unfiltered

RESOLUTIONS = CategoricalDistribution((32, 64))
EXPERIMENT = parse(
    {
        "name": "nih",
        "labels": ["Nodule", "Mass"],
        "data": {"index": "/nih/Data_Entry.csv", "images": "/nih/images"},
        "search": {"resolutions": [32, 64], "architectures": ["test_resnet"], "trials": 20},
        "training": {"epochs": 4},
    },
    source="nih",
)
SIDES = [32, 64, 128]
DURATIONS = st.dictionaries(st.sampled_from(SIDES), st.floats(0.1, 1e5), max_size=3)
KNOWN = st.tuples(DURATIONS, DURATIONS).filter(any)


def add(database: Database, label: str, resolution: int, seconds: float) -> None:
    study = optuna.load_study(study_name=f"nih/{label}", storage=database.storage)
    study.add_trial(
        create_trial(
            params={"resolution": resolution},
            distributions={"resolution": RESOLUTIONS},
            user_attrs={"seconds": seconds},
            value=0.7,
        )
    )


def test_finished_trials_replace_the_rough_durations(database: Database) -> None:
    before = forecast_cost(database, EXPERIMENT)
    assert (before.trials, before.worker_hours) == (40, None)
    assert before.line() == "40 trials to run; the hours are known once a trial has run."
    rough = {32: 100.0, 64: 400.0}
    assert forecast_cost(None, EXPERIMENT, lambda: rough).worker_hours == pytest.approx(40 * 250 / 3600)
    register(database, EXPERIMENT, unfiltered(), training_images=1000)
    add(database, "Nodule", 32, 10.0)
    add(database, "Mass", 32, 20.0)
    cost = forecast_cost(database, EXPERIMENT, lambda: rough)
    assert cost.rough
    assert cost.worker_hours == pytest.approx(38 * (15 + 0.15 * 400) / 2 / 3600)
    assert cost.line() == "38 trials to run, about 24 min (rough) of one worker's time."
    add(database, "Mass", 64, 45.0)
    cost = forecast_cost(database, EXPERIMENT, lambda: pytest.fail("all resolutions are timed"))
    assert (cost.trials, cost.rough) == (37, False)
    assert cost.seconds_by_resolution == {32: 15.0, 64: 45.0}
    assert cost.worker_hours == pytest.approx(37 * 30 / 3600)


def test_a_running_trial_gives_the_time_left_after_its_first_epoch(database: Database) -> None:
    register(database, EXPERIMENT, unfiltered(), training_images=1000)
    trial = database.storage.create_new_trial(database.storage.get_study_id_from_name("nih/Mass"))
    database.storage.set_trial_param(trial, "resolution", 0, RESOLUTIONS)

    def left(workers: int) -> str:
        return time_left(
            read_status(database, EXPERIMENT), read_trial_seconds(database, EXPERIMENT), rough={}, workers=workers
        )

    assert left(1) == "estimating"
    database.storage.set_trial_intermediate_value(trial, 1, 0.6)
    assert left(1).startswith("about ")
    assert left(1).endswith("(rough)")
    add(database, "Mass", 32, 100.0)
    add(database, "Nodule", 64, 300.0)
    assert left(1) == "about 2.1 h", "37 trials and three quarters"
    assert left(2) == "about 63 min"


@given(known=KNOWN, trials=st.floats(0.1, 1e4), more=st.floats(0, 1e4), workers=st.integers(1, 64))
def test_the_time_left_grows_with_the_trials_and_falls_with_the_workers(
    known: tuple[dict[int, float], dict[int, float]], trials: float, more: float, workers: int
) -> None:
    timed, rough = known
    alone = estimate_seconds(trials, SIDES, timed=timed, rough=rough, workers=1)
    assert alone is not None
    assert alone > 0
    shared = estimate_seconds(trials, SIDES, timed=timed, rough=rough, workers=workers)
    assert shared == pytest.approx(alone / workers)
    longer = estimate_seconds(trials + more, SIDES, timed=timed, rough=rough, workers=1)
    assert longer == pytest.approx(alone * (trials + more) / trials)
    slower = {resolution: 2 * seconds for resolution, seconds in timed.items()}
    assert (estimate_seconds(trials, SIDES, timed=slower, rough=rough, workers=1) or 0) >= alone
    if set(timed) == set(SIDES):
        assert alone == pytest.approx(trials * sum(timed.values()) / 3), "the rough durations do not matter"


def test_nothing_is_left_without_trials_and_nothing_known_without_durations() -> None:
    assert estimate_seconds(0, SIDES, timed={}, rough={}, workers=2) == 0
    assert estimate_seconds(3, SIDES, timed={}, rough={}, workers=2) is None


def test_a_rough_trial_takes_longer_at_a_larger_resolution_and_with_more_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    once = rough_trial_seconds(EXPERIMENT, training_images=1000, validation_images=200)
    assert 0 < once[32] < once[64]
    kept = rough_trial_seconds(EXPERIMENT, training_images=2000, validation_images=400)
    assert kept == pytest.approx({resolution: 2 * seconds for resolution, seconds in once.items()}), "measured once"
