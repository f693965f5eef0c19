"""The storage of one statement a call writes and reads what Optuna's own storage does."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, event

from acuity.storage.database import Database, open_storage
from acuity.storage.trial_counts import StudyCounts, TrialCounts
from acuity.storage.trials import claim_study, start_trial
from support.postgres import query


@pytest.fixture
def plain(database: Database) -> Iterator[RDBStorage]:
    """Optuna's storage on the same database, as optuna-dashboard and notebooks open it."""
    storage = RDBStorage(
        database.url.render_as_string(hide_password=False),
        engine_kwargs={"connect_args": {"options": "-c search_path=public"}},
    )
    yield storage
    storage.engine.dispose()


def new_study(database: Database) -> optuna.Study:
    return optuna.create_study(storage=database.storage, study_name="nih/Mass", direction="maximize")


def start(database: Database, study: optuna.Study) -> optuna.Trial:
    return optuna.Trial(study, database.storage.create_new_trial(study._study_id))


def finish(database: Database, study: optuna.Study, value: float) -> int:
    trial = start(database, study)
    study.tell(trial, value)
    return trial.number


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """The statements sent during the block."""
    sent: list[str] = []

    def keep(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", keep)
    yield sent
    event.remove(database.engine, "before_cursor_execute", keep)


def contents(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial holds; NaN equals NaN, and the order of attributes does not count."""
    return {
        name: repr(sorted(value.items()) if isinstance(value, dict) else value) for name, value in vars(trial).items()
    }


def test_optuna_reads_what_this_storage_writes_and_the_reverse(database: Database, plain: RDBStorage) -> None:
    study = new_study(database)
    trial = start(database, study)
    trial.suggest_categorical("resolution", [64, 128])
    trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    trial.suggest_int("batch_size_exponent", 2, 9)
    for step, value in enumerate((0.1 + 0.2, 1 / 3, math.nan, math.inf, -math.inf)):
        trial.report(value, step)
    trial.set_user_attr("worker", 'Ä \\u0000 "quoted" %s :name')
    trial.set_user_attr("loss", math.nan)
    database.storage.set_trial_system_attr(trial._trial_id, "fixed_params", {"resolution": 64})
    study.tell(trial, 2 / 3)
    infinite = start(database, study)
    study.tell(infinite, math.inf)
    start(database, study)
    expected = [contents(each) for each in plain.get_all_trials(study._study_id)]
    assert [contents(each) for each in study.get_trials()] == expected
    assert [contents(database.storage._backend.get_trial(each._trial_id)) for each in study.get_trials()] == expected
    with open_storage(database.url.render_as_string(hide_password=False)) as other:
        assert [contents(other.storage.get_trial(each._trial_id)) for each in study.get_trials()] == expected


def test_pruned_trial_has_its_last_report_as_its_value(database: Database, plain: RDBStorage) -> None:
    study = new_study(database)
    trial = start(database, study)
    trial.report(0.25, 3)
    study.tell(trial, state=TrialState.PRUNED)
    assert plain.get_trial(trial._trial_id).values == [0.25]


def test_finished_trial_takes_no_data(database: Database, plain: RDBStorage) -> None:
    study = new_study(database)
    trial = start(database, study)
    study.tell(trial, 0.5)
    storage, trial_id = database.storage, trial._trial_id
    before = contents(plain.get_trial(trial_id))
    for write in (
        lambda: storage.set_trial_intermediate_value(trial_id, 1, 0.9),
        lambda: storage.set_trial_user_attr(trial_id, "a", 1),
        lambda: storage.set_trial_param(trial_id, "x", 0.5, FloatDistribution(0, 1)),
        lambda: storage.set_trial_state_values(trial_id, TrialState.FAIL),
        lambda: storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.9]),
    ):
        with pytest.raises(UpdateFinishedTrialError, match=r"Trial#0 has already finished"):
            write()
    assert contents(plain.get_trial(trial_id)) == before
    with pytest.raises(KeyError, match="no longer has the trial with id 99999"):
        storage.set_trial_user_attr(99999, "a", 1)
    with pytest.raises(KeyError, match="no longer has the trial with id 99999"):
        storage.get_trial(99999)
    with pytest.raises(KeyError, match="no longer has the study with id 99999"):
        storage.get_all_trials(99999)


def test_waiting_trial_is_started_once(database: Database) -> None:
    study = new_study(database)
    study.enqueue_trial({"x": 1})
    [waiting] = study.get_trials()
    assert database.storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    assert not database.storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    started = database.storage.get_trial(waiting._trial_id)
    assert started.state is TrialState.RUNNING
    assert started.datetime_start is not None


def test_parameter_of_another_kind_is_refused(database: Database) -> None:
    study = new_study(database)
    start(database, study).suggest_float("x", 0, 1)
    study.get_trials()
    with pytest.raises(ValueError, match="different"):
        start(database, study).suggest_int("x", 0, 1)


def test_parameters_are_written_together_also_after_a_failure(
    database: Database, plain: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(database)
    trial = start(database, study)
    together = database.storage.parameters_together

    def suggest() -> None:
        with together(trial._trial_id):
            trial.suggest_int("x", 1, 3)
            trial.suggest_categorical("y", ["a"])

    def away(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(database.storage, "_write", away)
        with pytest.raises(ConnectionError):
            suggest()
    assert plain.get_trial(trial._trial_id).params == {}
    with statements(database) as sent:
        suggest()
    assert len(sent) == 1
    stored = plain.get_trial(trial._trial_id)
    assert stored.params == trial.params
    assert stored.distributions == {"x": IntDistribution(1, 3), "y": CategoricalDistribution(("a",))}


def test_pruners_trials_are_read_with_the_report_and_each_once(database: Database) -> None:
    """Trials that end between two reports, in any order, are all seen; so are those that ran at the first reading."""
    study = new_study(database)
    mine = start(database, study)
    slow = start(database, study)
    seen = []
    with open_storage(database.url.render_as_string(hide_password=False)) as others:
        their_study = optuna.load_study(storage=others.storage, study_name=study.study_name)
        for step in range(1, 7):
            finish(others, their_study, step / 10)
            if step == 3:
                study.get_trials()
            if step == 4:
                their_study.tell(slow, 0.9)
            with statements(database) as sent, database.storage.finished_trials_with_reports(study._study_id):
                mine.report(0.5, step)
                complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                again = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            assert len(sent) == 1
            seen.append([trial.number for trial in complete])
            assert [trial.number for trial in again] == seen[-1]
    assert seen == [[2], [2, 3], [2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] + 7 * [TrialState.COMPLETE]


def test_report_writes_a_heartbeat(database: Database) -> None:
    study = new_study(database)
    trial = start(database, study)
    assert database.storage.heartbeat_age_s(trial._trial_id) == math.inf
    trial.report(0.5, 1)
    assert database.storage.heartbeat_age_s(trial._trial_id) < 60
    with database.engine.connect() as connection:
        query = (
            "select count(*) from public.trial_heartbeats where heartbeat > now() at time zone 'utc' - interval '1 min'"
        )
        assert connection.exec_driver_sql(query).scalar() == 1


def test_started_trial_is_numbered_as_optuna_numbers_it(database: Database, plain: RDBStorage) -> None:
    study = new_study(database)
    numbers = []
    for turn in range(6):
        if turn % 2:
            numbers.append(plain.get_trial(plain.create_new_trial(study._study_id)).number)
        else:
            with claim_study(database, study._study_id, nested=False) as connection:
                trial_id, number = start_trial(connection, study._study_id)
            numbers.append(number)
            assert contents(plain.get_trial(trial_id)) == contents(database.storage.get_trial(trial_id))
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_counts_are_exact_in_any_order_of_ends(database: Database) -> None:
    study, other = new_study(database), optuna.create_study(storage=database.storage, study_name="nih/Nodule")
    counts = TrialCounts()

    def check(*expected: int) -> None:
        for counter in (counts, TrialCounts()):
            with database.autocommitted() as connection:
                assert counter.read(connection, [study._study_id, other._study_id]) == {
                    study._study_id: StudyCounts(*expected),
                    other._study_id: StudyCounts(1, 0, 0),
                }

    finish(database, other, 0.1)
    check(0, 0, 0)
    first, second, third = (start(database, study) for _ in range(3))
    check(0, 3, 0)
    study.tell(second, 0.2)
    check(1, 2, 0)
    study.enqueue_trial({"x": 1})
    study.tell(first, state=TrialState.FAIL)
    check(1, 1, 1, 1)
    third.report(0.1, 1)
    study.tell(third, state=TrialState.PRUNED)
    check(2, 0, 1, 1)
    finish(database, study, 0.3)
    check(3, 0, 1, 1)
    database.storage.set_trial_state_values(study.get_trials()[3]._trial_id, TrialState.FAIL)
    check(3, 0, 0, 2)
    finish(database, study, 0.3)
    check(4, 0, 0, 2)


def test_calls_change_no_setting_of_the_session(database: Database) -> None:
    """PgBouncer hands the session to another worker."""
    study = new_study(database)
    start(database, study).report(0.5, 1)
    with database.engine.connect() as connection:
        settings = "select name, source from pg_settings where name ~ '^default_transaction'"
        assert {source for _, source in connection.exec_driver_sql(settings)} == {"default"}


def test_call_on_a_connection_that_died_while_idle_is_repeated_on_another(database: Database, server: URL) -> None:
    study = new_study(database)
    trial = start(database, study)
    for step in (1, 2):
        cut = "select pg_terminate_backend(pid) from pg_stat_activity where datname"
        query(server, f"{cut} = '{database.url.database}'")
        trial.report(step / 10, step)
    assert database.storage.get_trial(trial._trial_id).intermediate_values == {1: 0.1, 2: 0.2}
