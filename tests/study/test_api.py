"""`import acuity`: experiments are built, opened and read from Python, with the checks of the command line."""

import gc
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import optuna
import pandas as pd
import pytest
from conftest import Confirmed
from pandas.testing import assert_frame_equal

import acuity
from acuity.objectives.phantoms.generator import write_phantoms
from acuity.storage.database import open_storage
from acuity.study.config.loading import load
from acuity.study.results.tables import read_trials
from support.confirmed_experiment import repeat_search
from support.postgres import query
from support.processes import find_processes
from support.threads import one_thread
from support.tiny_experiment import write_tiny_experiment

LABEL = "Nodule"
KEYS = {
    "name": "nih",
    "labels": ["Nodule", "Effusion"],
    "data": {"index": "index.csv", "images": Path("images")},
    "search": {"resolutions": (64, 128), "architectures": ["resnet34"], "trials": 20},
    "training": {"epochs": 5},
}


@pytest.fixture
def opened(confirmed: Confirmed) -> Iterator[acuity.OpenExperiment]:
    with acuity.open("tiny", storage=confirmed.url) as experiment:
        yield experiment


@pytest.fixture
def embedded(nothing_of_the_users: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an embedded server that does not run yet. The default storage is there."""
    place = Path(tempfile.mkdtemp(prefix="api-", dir=nothing_of_the_users))
    place.chmod(0o711)
    monkeypatch.setenv("ACUITY_EMBEDDED_DIR", str(place / "server"))
    return place / "server"


def test_script_without_a_main_guard_runs_once(phantoms: Path, tmp_path: Path) -> None:
    """Processes that decode images must not run the script too: docs/python.md has no `if __name__ == "__main__":`."""
    file = write_tiny_experiment(tmp_path, phantoms, cache=tmp_path / "cache")
    script = tmp_path / "script.py"
    script.write_text(
        "import acuity\n"
        "print('begins', flush=True)\n"
        f"experiment = acuity.Experiment.from_toml({str(file)!r})\n"
        "experiment.prepare()\n"
        "print('ends')\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("begins", "ends")] == ["begins", "ends"]


def test_import_loads_neither_torch_nor_optuna() -> None:
    script = (
        "import acuity, sys\n"
        "heavy = {'torch', 'optuna', 'pandas', 'sqlalchemy', 'matplotlib', 'numpy', 'timm', 'rich', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "acuity.Experiment, acuity.open, acuity.experiments\n"
        "assert not {'torch', 'optuna', 'timm'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_has_a_documentation() -> None:
    for name in acuity.__all__:
        assert getattr(acuity, name).__doc__, name
    with pytest.raises(AttributeError, match="no public name 'opne'; it has"):
        acuity.opne  # noqa: B018
    for name, member in vars(acuity.OpenExperiment).items():
        assert name.startswith("_") or member.__doc__, name


def test_an_experiment_from_python_is_the_one_of_the_file(tmp_path: Path, phantoms: Path) -> None:
    file = write_tiny_experiment(tmp_path, phantoms)
    from_file = acuity.Experiment.from_toml(str(file))
    search = {"resolutions": (16, 32), "architectures": ["test_resnet"], "trials": 5, "min_complete_per_resolution": 2}
    built = acuity.Experiment(
        folder=tmp_path,
        name="tiny",
        labels=["Cardiomegaly", "Nodule"],
        data={"index": phantoms, "images": phantoms.parent / "images", "split": "tiny.split.csv"},
        search=search | {"min_batch_size": 4, "min_updates_per_epoch": 5},
        training={"epochs": 2},
        workers={"heartbeat_s": 1, "grace_s": 3},
    )
    assert built._definition == from_file._definition == load(file)
    assert repr(built) == "Experiment('tiny', labels=['Cardiomegaly', 'Nodule'])"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"search": KEYS["search"] | {"trails": 3}}, "trails"),  # type: ignore[operator]
        ({"serach": {}}, "serach"),
        ({"training": {"epochs": 0}}, "training.epochs has 0"),
        ({"labels": []}, "labels"),
    ],
)
def test_a_mistake_in_python_has_the_line_of_the_file(keys: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(acuity.UsageError) as caught:
        acuity.Experiment(**KEYS | keys)
    message = str(caught.value)
    assert message.startswith("Experiment: ")
    assert line in message
    assert "\n" not in message
    file = tmp_path / "nih.toml"
    file.write_text(_toml(KEYS | keys))
    with pytest.raises(acuity.UsageError) as of_file:
        acuity.Experiment.from_toml(file)
    assert str(of_file.value) == message.replace("Experiment", str(file), 1)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(acuity.UsageError, match=r"acuity new .* writes a template"):
        acuity.Experiment.from_toml(tmp_path / "none.toml")


def test_prepare_returns_the_counts_and_prints_the_table(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = acuity.Experiment.from_toml(write_tiny_experiment(tmp_path, phantoms, cache=tmp_path / "cache"))
    preparation = experiment.prepare(look=str(tmp_path / "look.png"))
    assert preparation.images == 240
    assert repr(preparation).startswith("Preparation('tiny', images=240, patients=")
    assert (tmp_path / "look.png").exists()
    assert "Cardiomegaly" in capsys.readouterr().err


def test_the_list_of_experiments_is_a_table(confirmed: Confirmed) -> None:
    table = acuity.experiments(storage=confirmed.url)
    assert table["experiment"].tolist() == ["tiny"]
    assert table["state"].tolist() == ["confirmed"]


def test_an_open_experiment_has_the_tables_of_the_storage(opened: acuity.OpenExperiment, confirmed: Confirmed) -> None:
    with open_storage(confirmed.url) as database:
        assert_frame_equal(opened.trials(), read_trials(database, "tiny"))
    assert_frame_equal(opened.best(LABEL), acuity.best_resolution("tiny", storage=confirmed.url, label=LABEL))
    assert set(opened.by_resolution()["label"]) == set(opened.labels)
    assert "***" in repr(opened)
    with pytest.raises(acuity.UsageError, match='no label "Nodul"'):
        opened.trials("Nodul")


_PLOTS = (
    "contour", "edf", "intermediate_values", "optimization_history", "parallel_coordinate", "param_importances", "rank",
    "slice", "timeline",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("plot", _PLOTS)
def test_every_plot_of_optuna_works_on_a_study(opened: acuity.OpenExperiment, plot: str) -> None:
    study = opened.study(LABEL)
    assert type(study) is optuna.Study
    figure = getattr(optuna.visualization, f"plot_{plot}")(study)
    assert figure.data


def test_a_study_has_the_trials_of_the_table(opened: acuity.OpenExperiment) -> None:
    table = opened.trials(LABEL)
    for confirm in (False, True):
        study = opened.study(LABEL, confirm=confirm)
        assert [trial.number for trial in study.trials] == table[table["confirm"] == confirm]["number"].tolist()
    with pytest.raises(acuity.UsageError, match='no label "Mass"'):
        opened.study("Mass")


def test_a_study_of_a_confirmation_that_has_not_begun_is_a_clear_error(confirmed: Confirmed, database_url: str) -> None:
    with open_storage(database_url) as database:
        repeat_search(database, confirmed.registered)
    with (
        acuity.open("tiny", storage=database_url) as opened,
        pytest.raises(acuity.UsageError, match="`acuity confirm` makes it"),
    ):
        opened.study(LABEL, confirm=True)


def test_the_figure_of_aucs_is_a_picture_in_a_notebook(opened: acuity.OpenExperiment) -> None:
    figure = opened.plot_auc()
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(opened.labels)
    png, size = figure._repr_png_()  # type: ignore[attr-defined]
    assert png.startswith(b"\x89PNG")
    assert size["width"] > size["height"] > 100
    assert len(opened.plot_auc(LABEL).axes) == 1


def test_the_figure_of_aucs_ignores_styles_that_other_plots_leave_behind(opened: acuity.OpenExperiment) -> None:
    plain, _ = opened.plot_auc()._repr_png_()  # type: ignore[attr-defined]
    with mpl.rc_context({"axes.facecolor": "#E5E5E5", "axes.grid": True, "font.size": 20}):
        styled, _ = opened.plot_auc()._repr_png_()  # type: ignore[attr-defined]
    assert styled == plain


def test_a_report_and_a_network_are_written(opened: acuity.OpenExperiment, tmp_path: Path) -> None:
    written = opened.report(str(tmp_path / "report"))
    assert tmp_path / "report" / "report.html" in written
    description = opened.export(LABEL, tmp_path / "nodule", resolution=16, device="cpu")
    assert description["network"]["resolution"] == 16
    assert (tmp_path / "nodule" / "model.safetensors").exists()


def test_another_image_set_is_scored(
    opened: acuity.OpenExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = write_phantoms(tmp_path, images=120, size=64, seed=5)
    table = pd.read_csv(index)
    table["Patient ID"] += 100_000
    renamed = "other_" + table["Image Index"]
    for old, new in zip(table["Image Index"], renamed, strict=True):
        (tmp_path / "images" / old).rename(tmp_path / "images" / new)
    table.assign(**{"Image Index": renamed}).to_csv(index, index=False)
    with one_thread():
        scores = opened.score(index, device="cpu")
    assert set(scores["label"]) == set(opened.labels)
    assert set(scores["resolution"]) == {16, 32}
    assert scores["auc"].between(scores["auc_low"], scores["auc_high"]).all()
    assert (scores["positive_patients"] < scores["patients"]).all()


def test_confirm_refuses_too_few_seeds_and_workers(opened: acuity.OpenExperiment) -> None:
    with pytest.raises(acuity.UsageError, match="seeds is 2, must be at least 3"):
        opened.confirm(seeds=2)
    with pytest.raises(acuity.UsageError, match="workers is 0, must be at least 1"):
        opened.confirm(workers=0)


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ({"workers": -1}, "workers is -1, must be at least 0"),
        ({"workers_per_gpu": 0}, "workers per GPU is 0, must be at least 1"),
        ({"workers": 2, "workers_per_gpu": 2}, "workers and workers per GPU are both given"),
    ],
)
def test_a_launch_refuses_numbers_of_workers_as_the_command_does(numbers: dict[str, int], line: str) -> None:
    with pytest.raises(acuity.UsageError, match=line):
        acuity.Experiment(**KEYS).launch(**numbers, storage="postgresql://nobody@127.0.0.1:1/none")  # type: ignore[arg-type]


def test_a_closed_experiment_says_so(confirmed: Confirmed) -> None:
    opened = acuity.open("tiny", storage=confirmed.url)
    opened.close()
    opened.close()
    for call in (opened.best, opened.trials, lambda: opened.study(LABEL), opened.plot_auc, lambda: opened.labels):
        with pytest.raises(acuity.StorageError, match=r"tiny is closed; acuity\.open\('tiny'\) opens it again"):
            call()
    assert repr(opened) == "OpenExperiment('tiny', closed)"


def test_an_unknown_experiment_leaves_no_connection(confirmed: Confirmed) -> None:
    with pytest.raises(acuity.StorageError, match=r'no experiment named "nhi"\. There are: tiny'):
        acuity.open("nhi", storage=confirmed.url)
    assert _connections(confirmed.url) == 0


def test_the_connections_end_with_the_object(confirmed: Confirmed) -> None:
    opened = acuity.open("tiny", storage=confirmed.url)
    opened.best()
    assert _connections(confirmed.url) > 0
    del opened
    gc.collect()
    assert _connections(confirmed.url) == 0


def test_a_study_keeps_its_experiment_open(confirmed: Confirmed) -> None:
    study = acuity.open("tiny", storage=confirmed.url).study(LABEL)
    gc.collect()
    assert len(study.trials) > 0
    assert _connections(confirmed.url) > 0
    del study
    gc.collect()
    assert _connections(confirmed.url) == 0


def test_a_fork_leaves_the_connections_of_its_parent(confirmed: Confirmed) -> None:
    script = (
        "import acuity, os, sys\n"
        f"opened = acuity.open('tiny', storage={confirmed.url!r})\n"
        "before = len(opened.trials())\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit()\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "connection = opened._database.engine.connect()\n"
        "assert not connection.invalidated\n"
        "assert len(opened.trials()) == before"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_deleted_experiment_is_closed(confirmed: Confirmed, database_url: str) -> None:
    with open_storage(database_url) as database:
        repeat_search(database, confirmed.registered)
    opened = acuity.open("tiny", storage=database_url)
    opened.delete()
    with pytest.raises(acuity.StorageError, match="is closed"):
        opened.best()
    assert acuity.experiments(storage=database_url).empty


def test_an_outage_is_an_error_of_one_line(confirmed: Confirmed, database_url: str) -> None:
    with open_storage(database_url) as database:
        repeat_search(database, confirmed.registered)
    with acuity.open("tiny", storage=database_url) as opened:
        name = database_url.rsplit("/", 1)[1].partition("?")[0]
        query(confirmed.url, f"drop database {name} with (force)")
        with pytest.raises(acuity.OutageError, match="the database is away"):
            opened.best()
        query(confirmed.url, f"create database {name}")


def test_objects_and_processes_share_one_embedded_server(confirmed: Confirmed, embedded: Path) -> None:
    with open_storage() as database:
        repeat_search(database, confirmed.registered)
    script = (
        "import acuity, sys\nopened = acuity.open('tiny')\nprint(len(opened.trials()), flush=True)\nsys.stdin.read()"
    )
    first, second = acuity.open("tiny"), acuity.open("tiny")
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        trials = len(second.trials())
        assert int(process.stdout.readline()) == trials
        first.close()
        assert len(second.trials()) == trials
        second.close()
        third = acuity.open("tiny")  # the other process has kept the server
        assert len(third.trials()) == trials
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert len(third.trials()) == trials
    assert _servers(embedded)
    del third
    gc.collect()
    assert not _servers(embedded)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_experiment_launched_in_a_thread_ends_with_its_table(
    tmp_path: Path, phantoms: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write_tiny_experiment(tmp_path, phantoms, labels='["Nodule"]', trials=4, epochs=1, cache=tmp_path / "cache")
    tables: list[pd.DataFrame] = []
    experiment = acuity.Experiment.from_toml(file)
    thread = threading.Thread(
        target=lambda: tables.append(experiment.launch(workers=1, device="cpu", storage=database_url))
    )
    thread.start()
    thread.join()
    (table,) = tables
    assert table["label"].tolist() == ["Nodule"]
    assert table["auc"].notna().all()


def _connections(url: str) -> int:
    [[number]] = query(
        url,
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and application_name = 'acuity'",
    )
    return int(number)


def _servers(folder: Path) -> list[int]:
    return find_processes(lambda process: str(folder / "data").encode() in (process / "cmdline").read_bytes())


def _toml(table: dict[str, object]) -> str:
    def value(entry: object) -> str:
        if isinstance(entry, dict):
            return "{" + ", ".join(f"{key} = {value(each)}" for key, each in entry.items()) + "}"
        if isinstance(entry, list | tuple):
            return "[" + ", ".join(map(value, entry)) + "]"
        return str(entry) if isinstance(entry, int) else f'"{entry}"'

    return "\n".join(f"{key} = {value(entry)}" for key, entry in table.items())
