"""An experiment's row in the database: checked against its images, and deleted with its checkpoints."""

from pathlib import Path

import optuna
import pytest

from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.experiments import list_experiments
from acuity.study.config.loading import parse
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, checkpoint_name, checkpoints_of, delete_registered, read_registered
from acuity.study.registry.register import register
from support.image_identities import unfiltered


def experiment(name: str, folder: Path) -> Experiment:
    return parse(
        {
            "name": name,
            "labels": ["Nodule"],
            "data": {"index": "/nih/Data_Entry.csv", "images": "/nih/images"},
            "search": {"resolutions": [32], "architectures": ["test_resnet"], "trials": 6},
            "training": {"epochs": 1},
            "workers": {"checkpoints": str(folder)},
        },
        source=name,
    )


def make(database: Database, name: str, folder: Path, *, index: str = "a", split: str = "b") -> Registered:
    identity = unfiltered(index=index * 64, split=split * 64)
    return register(database, experiment(name, folder), identity, training_images=1000)


@pytest.mark.parametrize(("what", "other"), [("index", {"index": "c"}), ("split", {"split": "c"})])
def test_another_index_or_split_under_an_existing_name_is_refused_and_nothing_changes(
    database: Database, tmp_path: Path, what: str, other: dict[str, str]
) -> None:
    before = make(database, "nih", tmp_path)
    with pytest.raises(UsageError, match=rf"the {what} here \(SHA-256 cccccccccccc\) is not the one of experiment nih"):
        make(database, "nih", tmp_path, **other)
    assert read_registered(database, "nih") == before


def test_checkpoints_of_two_databases_differ_although_the_studies_have_the_same_ids(
    database: Database, tmp_path: Path
) -> None:
    first = make(database, "nih", tmp_path)
    assert checkpoint_name(read_registered(database, "nih"), "nih/Nodule", 1) == checkpoint_name(first, "nih/Nodule", 1)
    assert make(database, "nih", tmp_path) == first
    delete_registered(database, first)  # as in another database, which does not have the experiment
    second = make(database, "nih", tmp_path)
    assert checkpoint_name(first, "nih/Nodule", 1) != checkpoint_name(second, "nih/Nodule", 1)


def test_deletion_removes_the_experiments_checkpoints_and_no_others(database: Database, tmp_path: Path) -> None:
    def with_checkpoint(name: str) -> tuple[Registered, int]:
        made = make(database, name, tmp_path)
        study_id = database.storage.get_study_id_from_name(study_name(name, "Nodule"))
        checkpoints_of(made).write(checkpoint_name(made, f"{name}/Nodule", study_id), 0, attempt=1, data=b"weights")
        return made, study_id

    first, first_id = with_checkpoint("nih")
    second, second_id = with_checkpoint("nih2")
    delete_registered(database, first)
    assert checkpoints_of(first).read(checkpoint_name(first, "nih/Nodule", first_id), 0, attempt=1) is None
    assert checkpoints_of(second).read(checkpoint_name(second, "nih2/Nodule", second_id), 0, attempt=1) == b"weights"
    assert len(list(tmp_path.iterdir())) == 1


def test_experiment_that_would_take_over_another_programs_study_is_not_registered(
    database: Database, tmp_path: Path
) -> None:
    optuna.create_study(storage=database.storage, study_name="old/Nodule")
    with pytest.raises(StorageError, match=r'a study "old/Nodule" that is not one of this experiment'):
        make(database, "old", tmp_path)
    assert list_experiments(database) == []
