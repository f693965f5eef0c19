"""Reports reach the study and its pruner, also after an outage."""

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.pruners import MedianPruner
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from acuity.storage.database import Database
from acuity.study.tracking.trackers import NO_TRACKERS
from acuity.study.worker.heartbeat import DatabaseContact
from acuity.study.worker.reporter import Reporter


@pytest.fixture
def trial(database: Database) -> optuna.Trial:
    """A trial in a study with eight complete trials of a higher AUC."""
    study = optuna.create_study(
        storage=database.storage,
        study_name="nih/Mass",
        direction="maximize",
        pruner=MedianPruner(n_startup_trials=8, n_warmup_steps=2),
    )

    def ask() -> optuna.Trial:
        return optuna.Trial(study, database.storage.create_new_trial(study._study_id))

    for _ in range(8):
        earlier = ask()
        for epoch in (1, 2, 3):
            earlier.report(0.9, epoch)
        study.tell(earlier, 0.9)
    return ask()


def context(database: Database) -> Any:
    return SimpleNamespace(
        database=database,
        contact=DatabaseContact(longest_gap_s=90),
        retry_outages=lambda function: function(),
        trackers=NO_TRACKERS,
    )


def test_trial_below_the_median_stops_after_the_warm_up(database: Database, trial: optuna.Trial) -> None:
    reporter = Reporter(context(database), trial, prunable=range(2, 5))
    assert [reporter(epoch, 0.6) for epoch in (1, 2)] == [False, True]


def test_initial_trial_is_never_pruned(database: Database, trial: optuna.Trial) -> None:
    reporter = Reporter(context(database), trial, prunable=range(0))
    assert [reporter(epoch, 0.6) for epoch in (1, 2, 3)] == [False, False, False]


def test_reports_of_an_outage_are_kept_and_sent_in_order(
    database: Database, trial: optuna.Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("insert", {}, Exception("server closed the connection"))

    reporter = Reporter(context(database), trial, prunable=range(2, 5))
    with monkeypatch.context() as patch:
        patch.setattr(database.storage, "set_trial_intermediate_value", away)
        assert [reporter(epoch, 0.6) for epoch in (1, 2)] == [False, False]
    reporter.send_rest()
    stored = database.storage.get_trial(trial._trial_id)
    assert stored.intermediate_values == {1: 0.6, 2: 0.6}
    assert stored.state is TrialState.RUNNING
    assert reporter(3, 0.6)
