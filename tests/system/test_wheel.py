"""The wheel has every module, and runs Acuity's modules in a folder with files of the same names."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

from support.postgres import count_trials
from support.tiny_experiment import confirmable_experiment
from support.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("acuity", "objectives", "storage", "study", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, without build/ and egg-info of the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel and the libraries of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # Python ignores .pth files in a folder that a .pth file names, so the editable installation is not found.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages)]
    subprocess.run([*command, str(wheel)], check=True, timeout=120)
    return folder / "bin" / "python"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with files of the names of Acuity's packages."""
    for name in ("study.py", "storage/__init__.py", "objectives/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a file of the user')\n")
    return tmp_path


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = own(os.environ) | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def own(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without PYTHONPATH, which could name the checkout."""
    return {name: value for name, value in environment.items() if name != "PYTHONPATH"}


def test_wheel_has_every_module_and_template(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{'' if name == 'acuity' else 'acuity/'}{path.relative_to(REPOSITORY)}"
        for name in ("acuity", "objectives", "storage", "study")
        for path in (REPOSITORY / name).rglob("*")
        if path.suffix in (".py", ".toml", ".jinja") and not path.is_relative_to(REPOSITORY / "acuity" / "study")
    }
    expected = {name for name in expected if not name.startswith(("acuity/acuity/", "acuity/build"))}
    assert names == expected


def test_wheel_names_authors_pages_and_keywords(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Author"] == "Acuity contributors"
    assert "radiology" in metadata["Keywords"]
    assert any(line.startswith("Programming Language") for line in metadata.get_all("Classifier", []))
    assert metadata.get_all("Project-URL")


def test_import_finds_acuitys_modules_beside_files_of_the_same_names(installed: Path, folder: Path) -> None:
    script = (
        "import acuity, acuity.study.worker.loop, acuity.storage.database, acuity.objectives.training.train, sys\n"
        "assert callable(acuity.best_resolution)\n"
        "assert not {'study', 'storage', 'objectives'} & set(sys.modules)\n"
        "print(acuity.__file__)"
    )
    done = run([str(installed), "-c", script], folder)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1])


def test_worker_and_slurm_job_run_acuitys_modules_beside_files_of_the_same_names(installed: Path, folder: Path) -> None:
    nowhere = {"ACUITY_STORAGE": "postgresql://me@127.0.0.1:1/acuity"}
    worker = ["worker", "none", "--device", "cpu"]
    plain = run([str(installed), "-P", "-m", "acuity", *worker], folder, **nowhere)
    assert "nothing listens there" in plain.stderr
    job = ["--requeues", "0", "--patience-min", "0", *worker]
    submitted = run([str(installed), "-P", "-m", "acuity.study.fleet.slurm_job", *job], folder, **nowhere)
    assert "nothing listens there" in submitted.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_completes_a_trial_beside_files_of_the_same_names(
    installed: Path, folder: Path, environment: dict[str, str], database_url: str
) -> None:
    command = [str(installed), "-P", "-m", "acuity", "demo", "--workers", "1"]
    log = folder / "demo.log"
    with log.open("wb") as output:
        demo = subprocess.Popen(command, cwd=folder, env=own(environment), stderr=output, stdout=output)
    try:
        wait_until(
            lambda: count_trials(database_url, "state = 'COMPLETE'") > 0 or demo.poll() is not None,
            240,
            report=log.read_text,
        )
        assert demo.poll() is None, log.read_text()
    finally:
        demo.terminate()
        demo.wait(timeout=60)


# The lines of docs/python.md, on a small image set.
_PYTHON = """
from pathlib import Path
import acuity
import optuna

acuity.write_phantoms(Path("phantoms"), images=1200, size=64, seed=3)
experiment = acuity.Experiment.from_toml("nih.toml")
print(experiment.launch(workers=2, device="cpu"))
print(acuity.experiments())
nih = acuity.open("nih")
assert len(nih.trials()) == 4
assert nih.best()["label"].tolist() == ["Cardiomegaly"]
assert len(nih.by_resolution()) == 2
study = nih.study("Cardiomegaly")
assert optuna.visualization.plot_optimization_history(study).data
assert nih.plot_auc().axes
assert nih.confirm(workers=2, device="cpu", yes=True)["verdict"].notna().all()
assert Path("report/report.html") in nih.report("report")
assert nih.export("Cardiomegaly", "cardiomegaly", device="cpu")["network"]
nih.delete()
assert acuity.experiments().empty
print(acuity.__file__)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_line_of_the_page_on_python_runs_from_the_wheel(
    installed: Path, folder: Path, environment: dict[str, str]
) -> None:
    text = confirmable_experiment(name="nih", index="phantoms/Data_Entry.csv", images="phantoms/images", epochs=2)
    (folder / "nih.toml").write_text(text)
    done = subprocess.run(
        [str(installed), "-P", "-c", _PYTHON],
        cwd=folder,
        env=own(environment) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(installed.parents[1])
