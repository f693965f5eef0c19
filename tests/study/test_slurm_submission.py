"""Submission to Slurm, with stand-ins for its commands. tests/system/test_slurm.py runs a real Slurm."""

import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from acuity.storage.confirmations import count_test_uses
from acuity.storage.database import Database
from acuity.storage.url import parse_url
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.loading import parse
from acuity.study.config.schema import Experiment
from acuity.study.confirm import confirm
from acuity.study.confirmation.trials import claim_confirm_trial, open_confirm_studies
from acuity.study.errors import UsageError
from acuity.study.fleet.placement import FleetOptions
from acuity.study.fleet.slurm import Submission, cancel_jobs, check_slurm, find_jobs, submit_workers
from support.commands import acuity
from support.confirmed_experiment import make_searched

STORAGE = "postgresql://ada@db.example:5433/acuity"


def make_experiment(folder: Path, **cluster: object) -> Experiment:
    return parse(
        {
            "name": "nih",
            "labels": ["Nodule"],
            "data": {"index": "index.csv", "images": "images"},
            "search": {"resolutions": [64], "architectures": ["resnet34"], "trials": 6},
            "training": {"epochs": 1},
            "cluster": {"logs": str(folder / "logs")} | cluster,
        },
        source="nih.toml",
    )


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts stand-ins for Slurm's commands on the PATH; makes another: name, shell."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, shell: str) -> None:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{shell}\n")
        file.chmod(0o755)

    make("sbatch", f"cp \"$1\" {tmp_path}/script; env > {tmp_path}/environment; echo 'Submitted batch job 4711'")
    make("srun", "exit 1")
    make("scontrol", "exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return make


@pytest.fixture
def script(tmp_path: Path) -> Callable[[], str]:
    return lambda: (tmp_path / "script").read_text()


def submit(experiment: Experiment, *, storage: str = STORAGE, workers: int = 3) -> Submission:
    return submit_workers(experiment, storage=parse_url(storage), workers=workers, device="auto")


@pytest.mark.usefixtures("commands")
def test_launch_submits_one_array_with_the_resources_of_the_file(tmp_path: Path, script: Callable[[], str]) -> None:
    experiment = make_experiment(
        tmp_path,
        partition="gpu",
        account="radiology",
        time_limit_min=90,
        cpus_per_worker=6,
        memory_gib=1.5,
        max_requeues=7,
        setup=["module load cuda"],
        extra={"nodelist": "gpu[01-04]", "exclusive": True},
    )
    submission = submit(experiment)
    assert (submission.job, submission.workers) == ("4711", 3)
    options = [line.removeprefix("#SBATCH --") for line in script().splitlines() if line.startswith("#SBATCH")]
    assert {
        "array=0-2%3", "partition=gpu", "account=radiology", "time=90", "cpus-per-task=6", "gpus-per-node=1",
        "mem=1536M", "nodelist='gpu[01-04]'", "exclusive", "requeue", "signal=TERM@30", "job-name=acuity-nih",
    } <= set(options)  # fmt: skip
    assert not [option for option in options if option.startswith(("qos", "constraint", "wckey"))]
    assert script().index("module load cuda") < script().index("export ACUITY_STORAGE") < script().index("srun")
    assert f"export ACUITY_STORAGE={parse_url(STORAGE)}" in script()
    assert (
        f"{sys.executable} -m acuity.study.fleet.slurm_job --requeues 7 --patience-min 30 worker nih --device cuda"
        in script()
    )
    assert "--threads 6" in script()


@pytest.mark.usefixtures("commands")
def test_submission_pickles_nothing_and_the_log_folder_is_private(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    folder = submit(experiment).logs
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in folder.iterdir()} == {".sh"}
    folder.chmod(0o770)
    with pytest.raises(UsageError, match=r"is open to other users.*chmod 700"):
        submit(experiment)


@pytest.mark.usefixtures("commands")
def test_password_is_neither_in_the_script_nor_in_the_environment_of_sbatch(
    tmp_path: Path, script: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "password"
    secret.write_text("tops3cret\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACUITY_STORAGE_PASSWORD_FILE", "password")
    monkeypatch.setenv("ACUITY_STORAGE", "postgresql://ada:tops3cret@elsewhere/other")
    for name in ("ACUITY_DASHBOARD_PASSWORD", "ACUITY_READER_PASSWORD"):
        monkeypatch.setenv(name, "tops3cret")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/other/slurm.conf")
    check_slurm(STORAGE, warn=pytest.fail)
    submit(make_experiment(tmp_path))
    environment = (tmp_path / "environment").read_text()
    for text in (script(), environment):
        assert "tops3cret" not in text
        assert "MEM_PER_CPU" not in text
    assert f"export ACUITY_STORAGE_PASSWORD_FILE={secret}" in script()
    assert "SLURM_CONF=/etc/other/slurm.conf" in environment


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("storage", "variable", "message"),
    [
        (None, None, "the embedded Postgres serves this host alone"),
        ("postgresql://ada:tops3cret@db/acuity", None, r"db:\*:acuity:ada:PASSWORD into ~/.pgpass.*ada@db/acuity"),
        ("postgresql://db:5433/acuity?user=ada&password=tops3cret", None, "db:5433:acuity:ada:PASSWORD"),
        ("postgresql://ada@db/acuity?sslpassword=tops3cret", None, "the storage URL has a password"),
        (STORAGE, "PGPASSWORD", "unset PGPASSWORD"),
    ],
)
def test_storage_that_jobs_cannot_reach_without_a_secret_in_slurm_is_refused(
    storage: str | None, variable: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "tops3cret")
    with pytest.raises(UsageError, match=message) as refused:
        check_slurm(storage, warn=pytest.fail)
    assert "tops3cret" not in str(refused.value)


@pytest.mark.usefixtures("commands")
def test_storage_that_only_this_host_can_reach_gives_one_warning(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    for storage, warnings in (("postgresql://ada@localhost:5433/acuity", 1), (STORAGE, 0)):
        environment = {"HOME": str(tmp_path), "PATH": f"{folder}:{os.environ['PATH']}", "ACUITY_STORAGE": storage}
        for command in (["launch", str(tmp_path / "none.toml")], ["confirm", str(tmp_path / "none.toml")]):
            said = acuity(*command, "--cluster", "slurm", "--workers", "2", environment=environment, status=1).stderr
            assert said.count("Warning: ") == warnings, said
            named = f"--storage postgresql://ada@{platform.node()}:5433/acuity" in said
            assert named == bool(warnings)


@pytest.mark.usefixtures("commands")
def test_confirmation_on_slurm_submits_its_workers_and_scores_no_test_patient(
    database: Database, phantoms: Path, tmp_path: Path, script: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    registered, console = make_searched(database, tmp_path, phantoms), Console(file=io.StringIO())
    fleet = FleetOptions(workers=2, cluster="slurm")
    assert confirm(database, registered, fleet, seeds=None, console=console) is None
    assert "array=0-1%2" in script()
    assert "worker tiny" in script()
    studies = open_confirm_studies(database, registered.experiment)
    assert claim_confirm_trial(database, registered, studies, can_hold=lambda *_: True), "a trial for the jobs"
    assert count_test_uses(database, registered.identity.split_sha256) == 0
    said = console.file.getvalue()
    assert "2 workers submitted to Slurm as job 4711" in said
    assert "`acuity confirm tiny` scores the test patients once they are done" in said


def test_launch_without_slurm_is_refused(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": str(tmp_path), "ACUITY_STORAGE": STORAGE}
    command = [sys.executable, "-m", "acuity", "launch", "nih.toml", "--cluster", "slurm", "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no sbatch, srun, scontrol on the PATH of this host" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run([*command[:-2]], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs --workers N" in done.stderr


def test_error_of_sbatch_is_reported(commands: Callable[[str, str], None], tmp_path: Path) -> None:
    commands("sbatch", "echo 'sbatch: error: invalid account or partition' >&2; exit 1")
    with pytest.raises(UsageError, match=r"did not accept the workers of nih \(invalid account or partition\)"):
        submit(make_experiment(tmp_path))


def test_only_jobs_of_the_experiment_and_storage_are_cancelled(
    commands: Callable[[str, str], None], script: Callable[[], str], tmp_path: Path
) -> None:
    submit(make_experiment(tmp_path))
    [mark] = [line.split("=")[1] for line in script().splitlines() if "--comment" in line]
    commands("squeue", f'[ -e {tmp_path}/cancelled ] || echo "4711|{mark}"; echo "$@" > {tmp_path}/asked; echo "12|x"')
    commands("scancel", f'echo "$@" > {tmp_path}/cancelled')
    assert find_jobs("nih", storage_url=None) == ["12", "4711"]
    assert cancel_jobs("nih", storage_url="postgresql://ada@elsewhere/acuity") == []
    assert not (tmp_path / "cancelled").exists()
    assert cancel_jobs("nih", storage_url=STORAGE) == ["4711"]
    assert (tmp_path / "cancelled").read_text() == "4711\n"
    assert "--name acuity-nih" in (tmp_path / "asked").read_text()


def test_slurm_commands_without_a_cluster_find_no_jobs(commands: Callable[[str, str], None]) -> None:
    commands("squeue", "echo 'squeue: fatal: Could not establish a configuration source' >&2; exit 1")
    assert find_jobs("nih", storage_url=None) == []
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UsageError, match=r"squeue failed .*Unable to contact slurm controller"):
        find_jobs("nih", storage_url=None)


def test_options_that_acuity_sets_are_refused_in_extra(tmp_path: Path) -> None:
    for option in ("array", "time", "signal"):
        with pytest.raises(UsageError, match=f"cluster.extra has {option}, which Acuity sets itself"):
            make_experiment(tmp_path, extra={option: 1})
    with pytest.raises(UsageError, match="must be a long option of sbatch"):
        make_experiment(tmp_path, extra={"wrap\n#": 1})
    with pytest.raises(UsageError, match=r"unknown key cluster\.patition; did you mean partition"):
        make_experiment(tmp_path, patition="gpu")


def test_cluster_section_of_a_registered_experiment_may_change(tmp_path: Path) -> None:
    before = make_experiment(tmp_path)
    after = replace(before, cluster=replace(before.cluster, partition="gpu", extra={"nice": 5}))
    assert changes_of_meaning(before, after) == []


def test_job_ends_with_status_75_after_a_long_outage_of_the_database(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "ACUITY_STORAGE": "postgresql://ada@127.0.0.1:1/acuity"}
    command = [
        sys.executable,
        "-m",
        "acuity.study.fleet.slurm_job",
        "--requeues",
        "1",
        "--patience-min",
        "0",
        "worker",
        "nih",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == os.EX_TEMPFAIL
    assert "the database has been away" in done.stderr
