"""A move from an embedded server to another Postgres copies everything or nothing; the experiment continues there."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text

from acuity.storage.admin.move import copy_embedded, rename_source
from acuity.storage.database import Database, open_storage
from acuity.storage.embedded.server import embedded_server
from acuity.storage.errors import StorageError
from acuity.storage.experiments import save_experiment
from acuity.storage.feasible_batches import FeasibleBatchKey, read_feasible_batch, write_feasible_batch
from acuity.storage.studies import create_study
from acuity.storage.trials import record_heartbeat
from acuity.study.move import move_storage
from support.commands import acuity
from support.tiny_experiment import write_tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # Optuna wants its own loop

KEY = FeasibleBatchKey("CPU", 2**30, "test_resnet", 32, "fp32", True, "2.9")
# Every database has rows of its own in acuity.locks.
_TABLES = (
    "select format('%I.%I', schemaname, tablename) from pg_tables "
    "where schemaname in ('public', 'acuity') and tablename <> 'locks'"
)


@pytest.fixture
def laptop() -> Iterator[Path]:
    """The folder of a second embedded server, which does not hold the tests' databases."""
    folder = Path(tempfile.mkdtemp(prefix="acuity-laptop-", dir="/dev/shm"))
    folder.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACUITY_EMBEDDED_DIR", str(folder / "server"))
        yield folder / "server"
    subprocess.run(["rm", "-r", folder], check=True)


@pytest.fixture
def pilot(laptop: Path) -> Path:
    """An embedded server with an experiment whose values a careless copy would change."""
    with open_storage() as database:
        fill(database)
    return laptop


def fill(database: Database) -> None:
    experiment = {
        "name": "nih",
        "labels": ["Pleural Größe"],
        "data": {"index": "/data/index.csv", "images": "/data/images"},
        "search": {"resolutions": [32, 64], "architectures": ["test_resnet"], "trials": 12},
        "training": {"epochs": 3},
    }
    definition = {"experiment": experiment, "batch_size_exponents": [2, 4]}
    save_experiment(database, "nih", definition)
    write_feasible_batch(database, KEY, 96)
    gone = optuna.create_study(storage=database.storage, study_name="gone")
    optuna.delete_study(study_name=gone.study_name, storage=database.storage)
    name = "nih/Pleural Größe\t\\N \n%"
    study = create_study(database, name, experiment="nih", label="Pleural Größe", confirm=False)
    study.set_user_attr("of", {"text": "a\\b\n'\"", "numbers": [0.1, 1e-300]})
    for number in range(4):
        trial = study.ask()
        trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        trial.suggest_categorical("resolution", [32, 64])
        for epoch, value in enumerate((0.1 + 0.2, float("nan"), 2 / 3)):
            trial.report(value, epoch + 1)
        trial.set_user_attr("number", number)
        if number == 3:
            record_heartbeat(database, trial._trial_id)
        elif number == 2:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, 1 / 3 + number / 7)
    study.enqueue_trial({"resolution": 32})


def contents(database: Database) -> dict[str, list[str]]:
    """Every row of every table, as text in order."""
    with database.engine.connect() as connection:
        return {
            table: sorted(connection.scalars(text(f"select t::text from {table} t")).all())
            for table in connection.scalars(text(_TABLES)).all()
        }


@pytest.mark.usefixtures("pilot")
def test_every_row_is_copied_unchanged_and_ids_continue(empty_database_url: str) -> None:
    with open_storage() as source:
        before = contents(source)
        (study,) = optuna.get_all_study_summaries(source.storage)
        trials = optuna.load_study(storage=source.storage, study_name=study.study_name).get_trials()
    with embedded_server() as source_url:
        with open_storage(empty_database_url) as target:
            copied = copy_embedded(target, source_url)
        aside = rename_source(source_url)
    rows = {table.table: table.rows for table in copied}
    assert rows == {table: len(of) for table, of in before.items() if "version" not in table}
    with open_storage(empty_database_url) as target:
        assert contents(target) == before
        arrived = optuna.load_study(storage=target.storage, study_name=study.study_name)
        assert str(arrived.get_trials()) == str(trials)  # as text, since NaN does not equal NaN
        assert [trial.number for trial in arrived.get_trials()] == list(range(5))
        assert read_feasible_batch(target, KEY) == 96
        new = optuna.create_study(storage=target.storage, study_name="new")
        assert new._study_id == 3, "the id of a deleted study is not used again"
    put_aside_url = source_url.set(database=aside).render_as_string(hide_password=False)
    with embedded_server(), open_storage(put_aside_url) as kept:
        assert contents(kept) == before
    with open_storage() as empty:
        assert not optuna.get_all_study_summaries(empty.storage)
    with pytest.raises(StorageError, match="holds no experiment: there is nothing to move"):
        move_storage(empty_database_url, say=print)


@pytest.mark.usefixtures("pilot")
def test_target_with_an_experiment_is_refused_by_its_name(database: Database, database_url: str) -> None:
    save_experiment(database, "chexpert", {})
    before = contents(database)
    with pytest.raises(StorageError, match=r"the target holds the experiment chexpert already.*createdb"):
        move_storage(database_url, say=print)
    assert contents(database) == before
    with open_storage() as source:
        assert len(optuna.get_all_study_summaries(source.storage)) == 1


@pytest.mark.usefixtures("pilot")
def test_failed_copy_leaves_the_target_empty_and_the_source_unchanged(database: Database, database_url: str) -> None:
    empty = contents(database)
    with open_storage() as source:
        before = contents(source)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "create function public.change() returns trigger language plpgsql as "
            "$$ begin new.intermediate_value := 0; return new; end $$"
        )
        connection.exec_driver_sql(
            "create trigger change before insert on trial_intermediate_values for each row execute function change()"
        )
    with pytest.raises(StorageError, match=r"trial_intermediate_values has .* rows after the copy.*nothing was copied"):
        move_storage(database_url, say=print)
    assert contents(database) == empty
    with open_storage() as source:
        assert contents(source) == before
    with database.engine.begin() as connection:
        connection.exec_driver_sql("drop trigger change on trial_intermediate_values")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acuity.study.move.rename_source", lambda _: 1 / 0)  # between the copy and the end
        with pytest.raises(ZeroDivisionError):
            move_storage(database_url, say=print)
    assert contents(database) == before


@pytest.mark.usefixtures("pilot")
def test_next_move_finishes_one_that_was_interrupted_after_the_copy(database: Database) -> None:
    with embedded_server() as source_url:
        copy_embedded(database, source_url)
        first = contents(database)
        copy_embedded(database, source_url)
        assert contents(database) == first
        with database.engine.begin() as connection:
            connection.execute(text("update trial_values set value = value + 1e-9"))
        with pytest.raises(StorageError, match="the target holds the experiment nih already"):
            copy_embedded(database, source_url)


@pytest.mark.usefixtures("pilot")
def test_nothing_is_moved_while_the_source_is_in_use(database: Database, database_url: str) -> None:
    with open_storage() as source, source.engine.connect() as connection:
        connection.execute(text("select 1"))
        with pytest.raises(StorageError, match=r"in use \(\d+ connections, trials of nih run\): `acuity stop nih`"):
            move_storage(database_url, say=print)
        (study,) = optuna.get_all_study_summaries(source.storage)
        optuna.load_study(storage=source.storage, study_name=study.study_name).tell(3, 0.5)
        with pytest.raises(StorageError, match="close dashboards, notebooks"):
            move_storage(database_url, say=print)
        with embedded_server() as url, pytest.raises(StorageError, match="all is copied, but"):
            rename_source(url)
    assert not optuna.get_all_study_summaries(database.storage)


@pytest.mark.usefixtures("pilot")
def test_source_and_target_must_differ() -> None:
    with embedded_server() as url, pytest.raises(StorageError, match="are one database"):
        move_storage(url.render_as_string(hide_password=False), say=print)


@pytest.mark.slow
def test_experiment_continues_at_the_server_to_the_raised_budget(
    laptop: Path, phantoms: Path, tmp_path: Path, empty_database_url: str
) -> None:
    file = write_tiny_experiment(tmp_path, phantoms, cache=tmp_path / "cache")
    on_laptop = os.environ | {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "ACUITY_EMBEDDED_DIR": str(laptop),
    }
    on_server = on_laptop | {"ACUITY_STORAGE": empty_database_url}
    acuity("launch", str(file), "--workers", "2", environment=on_laptop)
    before = acuity("best", "tiny", "--format", "json", environment=on_laptop).stdout
    networks = {path: path.read_bytes() for path in (tmp_path / "cache" / "checkpoints").rglob("*.ckpt")}

    refused = acuity("storage", "move", environment=on_laptop, status=2)
    assert "Missing argument 'URL'" in refused.stderr
    moved = acuity("storage", "move", environment=on_server)
    assert f"stay in {tmp_path / 'cache' / 'checkpoints'}" in moved.stderr
    assert "export ACUITY_STORAGE=postgresql://acuity:***@" in moved.stderr
    assert "public.trials " in moved.stdout
    password = empty_database_url.split(":")[2].split("@")[0]
    assert password not in moved.stdout + moved.stderr
    assert acuity("best", "tiny", "--format", "json", environment=on_server).stdout == before
    gone = acuity("best", "tiny", environment=on_laptop, status=1)
    assert 'no experiment named "tiny"' in gone.stderr

    file.write_text(file.read_text().replace("trials = 5", "trials = 7"))
    launched = acuity("launch", str(file), "--workers", "2", environment=on_server)
    assert "4 trials to run" in launched.stderr
    with open_storage(empty_database_url) as database, database.engine.connect() as connection:
        finished = text(
            "select label, count(*), max(number) from acuity.all_trials "
            "where state in ('COMPLETE', 'PRUNED') group by 1"
        )
        assert sorted(connection.execute(finished).all()) == [("Cardiomegaly", 7, 6), ("Nodule", 7, 6)]
    for label in json.loads(acuity("best", "tiny", "--format", "json", environment=on_server).stdout)["labels"]:
        trials = label["trials"]
        assert trials.pop("complete") + trials.pop("pruned") == 7
        assert set(trials.values()) == {0}
    kept = {path for path in networks if path.exists()}
    assert kept, "checkpoints of the laptop are used at the server"
    assert all(path.read_bytes() == networks[path] for path in kept)
