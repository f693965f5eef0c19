"""An experiment's entry in the database goes with everything that belongs to it alone."""

from pathlib import Path

from storage.database import Database
from study.experiment import parse
from study.register import checkpoint_name, checkpoints_of, forget, register, study_name


def test_a_deleted_experiment_takes_its_checkpoints_along_and_no_others(database: Database, tmp_path: Path) -> None:
    def registered(name: str):
        table = {
            "name": name,
            "labels": ["Nodule"],
            "data": {"index": "/nih/Data_Entry.csv", "images": "/nih/images"},
            "search": {"resolutions": [32], "architectures": ["test_resnet"], "trials": 6},
            "training": {"epochs": 1},
            "workers": {"checkpoints": str(tmp_path)},
        }
        made = register(
            database, parse(table, source=name), index_sha256="a" * 64, split_sha256="b" * 64, training_images=1000
        )
        study_id = database.storage.get_study_id_from_name(study_name(name, "Nodule"))
        checkpoints_of(made).write(checkpoint_name(f"{name}/Nodule", study_id), 0, attempt=1, data=b"weights")
        return made, study_id

    first, first_id = registered("nih")
    second, second_id = registered("nih2")
    forget(database, first)
    assert checkpoints_of(first).read(checkpoint_name("nih/Nodule", first_id), 0, attempt=1) is None
    assert checkpoints_of(second).read(checkpoint_name("nih2/Nodule", second_id), 0, attempt=1) == b"weights"
    assert len(list(tmp_path.iterdir())) == 1
