"""An experiment is saved, read, and deleted with its studies."""

from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import create_trial
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.experiments import (
    delete_experiment,
    find_experiment,
    list_experiments,
    read_experiment,
    save_experiment,
)
from acuity.storage.feasible_batches import FeasibleBatchKey, read_feasible_batch, write_feasible_batch
from acuity.storage.studies import check_names, create_study
from acuity.storage.trials import claim_study, record_heartbeat

DEFINITION = {"labels": ["Pleural Thickening", "Öd%s:em"], "search": {"trials": 40, "rate": 1e-05, "weights": None}}


def test_experiment_is_read_as_it_was_saved(database: Database) -> None:
    save_experiment(database, "nih", DEFINITION)
    stored = read_experiment(database, "nih")
    assert stored == find_experiment(database, "nih")
    assert (stored.name, stored.definition) == ("nih", DEFINITION)
    assert stored.created.tzinfo is not None


def test_saving_again_updates_and_keeps_the_date(database: Database) -> None:
    save_experiment(database, "nih", DEFINITION)
    created = read_experiment(database, "nih").created
    save_experiment(database, "nih", {"labels": []})
    stored = read_experiment(database, "nih")
    assert (stored.definition, stored.created) == ({"labels": []}, created)


def test_error_for_an_unknown_name_has_the_existing_names(database: Database) -> None:
    with pytest.raises(StorageError, match=r'no experiment named "nhi"\. There is none yet: acuity launch'):
        read_experiment(database, "nhi")
    save_experiment(database, "nih", DEFINITION)
    save_experiment(database, "demo", DEFINITION)
    with pytest.raises(StorageError, match=r'^no experiment named "nhi"\. There are: nih, demo$'):
        read_experiment(database, "nhi")
    assert find_experiment(database, "nhi") is None
    assert list_experiments(database) == ["nih", "demo"]


def test_deletion_removes_the_experiments_studies_and_rows_and_no_others(database: Database) -> None:
    key = FeasibleBatchKey("CPU", 2**30, "resnet34", 64, "fp32", channels_last=False, torch_version="2")
    write_feasible_batch(database, key, 32)
    for name in ("nih", "nih-2"):
        save_experiment(database, name, DEFINITION)
        for study_name in (f"{name}/Mass", f"{name}/Mass/confirm"):
            confirm = study_name.endswith("confirm")
            study = create_study(database, study_name, experiment=name, label="Mass", confirm=confirm)
            study.set_user_attr("key", 1)
            study.add_trial(
                create_trial(
                    value=0.5,
                    params={"x": 1},
                    distributions={"x": IntDistribution(0, 3)},
                    user_attrs={"batch_size": 8},
                    intermediate_values={1: 0.4},
                )
            )
            trial_id = database.storage.create_new_trial(study._study_id)
            database.storage.set_trial_system_attr(trial_id, "key", 1)
            with claim_study(database, study._study_id):
                record_heartbeat(database, trial_id)
    every = "select count(*) from "
    tables = [
        *("studies", "study_directions", "study_user_attributes", "trials", "trial_values", "trial_params"),
        *("trial_user_attributes", "trial_system_attributes", "trial_intermediate_values", "trial_heartbeats"),
        *("acuity.registered_studies", "acuity.locks where name like 'study %'"),
    ]

    def rows() -> list[int]:
        with database.engine.connect() as connection:
            return [connection.scalars(text(every + table)).one() for table in tables]

    before = rows()
    delete_experiment(database, "nih")
    assert list_experiments(database) == ["nih-2"]
    assert [study.study_name for study in database.storage.get_all_studies()] == ["nih-2/Mass", "nih-2/Mass/confirm"]
    assert rows() == [count // 2 for count in before]
    assert min(rows()) >= 2
    assert read_feasible_batch(database, key) == 32


def test_interrupted_deletion_can_be_repeated(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    save_experiment(database, "nih", DEFINITION)
    for label in ("Mass", "Nodule"):
        create_study(database, f"nih/{label}", experiment="nih", label=label, confirm=False)
    delete = optuna.delete_study

    def delete_once(*, study_name: str, storage: optuna.storages.BaseStorage) -> None:
        delete(study_name=study_name, storage=storage)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna, "delete_study", delete_once)
    with pytest.raises(KeyboardInterrupt):
        delete_experiment(database, "nih")
    monkeypatch.undo()
    delete_experiment(database, "nih")
    assert list_experiments(database) == []
    assert database.storage.get_all_studies() == []


def test_studies_of_other_programs_outlive_an_experiment_of_their_prefix(database: Database) -> None:
    save_experiment(database, "old", DEFINITION)
    create_study(database, "old/Mass", experiment="old", label="Mass", confirm=False)
    foreign = optuna.create_study(storage=database.storage, study_name="old/study")
    foreign.add_trial(create_trial(value=0.5))
    delete_experiment(database, "old")
    assert [study.study_name for study in database.storage.get_all_studies()] == ["old/study"]
    assert len(foreign.get_trials()) == 1


def test_study_of_another_program_is_never_taken_over(database: Database) -> None:
    save_experiment(database, "old", DEFINITION)
    optuna.create_study(storage=database.storage, study_name="old/Mass")
    words = r'this database has a study "old/Mass" that is not one of this experiment: give the experiment another name'
    with pytest.raises(StorageError, match=words):
        create_study(database, "old/Mass", experiment="old", label="Mass", confirm=False)
    with pytest.raises(StorageError, match=words):
        check_names(database, ["old/Nodule", "old/Mass"])


def test_eight_processes_that_create_one_study_get_the_same(database: Database) -> None:
    save_experiment(database, "nih", DEFINITION)
    with ThreadPoolExecutor(8) as pool:
        studies = pool.map(
            lambda _: create_study(database, "nih/Mass", experiment="nih", label="Mass", confirm=False), range(8)
        )
        assert len({study._study_id for study in studies}) == 1


def test_deletion_of_an_unknown_experiment_is_refused(database: Database) -> None:
    with pytest.raises(StorageError, match=r'no experiment named "nhi"'):
        delete_experiment(database, "nhi")
