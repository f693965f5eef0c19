"""Acuity's commands and real worker processes on stand-in GPUs."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from acuity.storage.url import parse_url
from support import standin_gpu
from support.commands import ACUITY, acuity
from support.fake_mps import write_fake_mps
from support.postgres import count_trials, query
from support.standin_gpu.settings import GIB, Settings
from support.tiny_experiment import write_tiny_experiment
from support.waiting import wait_until

pytestmark = pytest.mark.slow  # the stand-in GPUs are in the processes of the commands only
_COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"
_FAKE_SRUN = """#!/bin/bash
shift 3 # --unbuffered --output PATH
while [[ $1 == -* ]]; do shift; done
export SLURM_JOB_ID=4711
for task in $(seq 0 $((TASKS - 1))); do SLURM_LOCALID=$task SLURM_PROCID=$task "$@" & done
wait
"""


def used(settings: Settings) -> list[dict[str, Any]]:
    """The memory of each GPU on which a process had a context, in the order of the GPUs; once for each process."""
    assert settings.folder is not None
    processes = [json.loads(file.read_text()) for file in Path(settings.folder).glob("counts-*.json")]
    memories = [memory for process in processes for memory in process["memory"] if memory["has_context"]]
    return sorted(memories, key=lambda memory: memory["physical"])


def run_on_gpus(*arguments: str, environment: Mapping[str, str], settings: Settings) -> list[dict[str, Any]]:
    """Run `acuity` to its end; returns `used`."""
    acuity(*arguments, environment={**environment, **standin_gpu.environment(settings)})
    return used(settings)


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    return write_tiny_experiment(tmp_path, phantoms, labels='["Cardiomegaly"]', trials=4)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(devices=2, total_memory=16 * GIB, folder=str(tmp_path / "gpus"))


def test_a_worker_trains_on_the_gpu_within_its_limit(
    experiment: Path, environment: dict[str, str], database_url: str, settings: Settings
) -> None:
    (memory,) = run_on_gpus(
        "launch", str(experiment), "--workers", "1", "--device", "cuda", environment=environment, settings=settings
    )
    assert count_trials(database_url, "state = 'COMPLETE'") == 4
    assert memory["physical"] == 0
    assert 0.5 < memory["fraction"] < 1
    assert memory["allocated_peak"] > 0


def test_launch_starts_a_worker_on_each_gpu_and_uses_none_itself(
    experiment: Path, environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    gpus = Settings(devices=4, folder=str(tmp_path / "gpus"))
    memories = run_on_gpus("launch", str(experiment), environment=environment, settings=gpus)
    assert [memory["physical"] for memory in memories] == [0, 1, 2, 3]
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4


def test_workers_that_share_gpus_have_limits_that_fit_them(
    experiment: Path, environment: dict[str, str], database_url: str, settings: Settings, tmp_path: Path
) -> None:
    record = write_fake_mps(tmp_path / "bin")
    environment = environment | {"PATH": f"{tmp_path / 'bin'}:{environment['PATH']}"}
    memories = run_on_gpus(
        "launch", str(experiment), "--workers-per-gpu", "2", environment=environment, settings=settings
    )
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    assert [memory["physical"] for memory in memories] == [0, 0, 1, 1]
    for memory in memories:
        assert 2 * (memory["fraction"] * memory["total"] + settings.context_bytes) <= memory["total"]
    assert "quit" in record.read_text()


@pytest.mark.parametrize("disguise", ["AcceleratorError", "find"])
def test_trials_survive_an_allocation_that_fails(
    experiment: Path, environment: dict[str, str], database_url: str, tmp_path: Path, disguise: str
) -> None:
    failing = Settings(devices=2, out_of_memory=disguise, fail_allocation=12, folder=str(tmp_path / "gpus"))
    (memory,) = run_on_gpus(
        "launch", str(experiment), "--workers", "1", "--device", "cuda:1", environment=environment, settings=failing
    )
    assert memory["physical"] == 1
    assert memory["out_of_memory_errors"] == 1
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    assert count_trials(database_url, "state = 'FAIL' and not requeued") == 0


def test_trial_on_a_gpu_resumes_after_sigterm(
    phantoms: Path, environment: dict[str, str], database_url: str, settings: Settings, tmp_path: Path
) -> None:
    experiment = write_tiny_experiment(tmp_path, phantoms, labels='["Cardiomegaly"]', trials=4, epochs=12)
    command = [*ACUITY, "launch", str(experiment), "--workers", "1"]
    on_gpus = environment | standin_gpu.environment(settings)
    launch = subprocess.Popen(command, env=on_gpus, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: query(database_url, "select count(*) from trial_intermediate_values")[0][0] > 1, 180)
    finally:
        launch.send_signal(signal.SIGTERM)
        launch.communicate(timeout=60)
    assert count_trials(database_url, "state = 'RUNNING'") == 0
    acuity(*command[len(ACUITY) :], environment=on_gpus)
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    resumed = query(database_url, "select value_json::int from trial_user_attributes where key = 'resumed_epochs'")
    assert sum(epochs for (epochs,) in resumed) > 0


def test_confirm_retrains_and_scores_on_gpus_within_their_limits(
    experiment: Path, environment: dict[str, str], settings: Settings
) -> None:
    memories = run_on_gpus("launch", str(experiment), environment=environment, settings=settings)
    assert [memory["physical"] for memory in memories] == [0, 1]
    for file in Path(str(settings.folder)).glob("counts-*.json"):
        file.unlink()
    on_gpus = environment | standin_gpu.environment(settings)
    acuity("confirm", "tiny", "--yes", environment=on_gpus)
    memories = used(settings)
    assert [memory["physical"] for memory in memories] == [0, 0, 1]  # two workers, and the command that scores
    assert all(memory["fraction"] < 1 for memory in memories)
    assert all(memory["allocated_peak"] > 0 for memory in memories)


def test_fit_probes_the_gpu_that_is_named(environment: dict[str, str], settings: Settings) -> None:
    on_gpus = environment | standin_gpu.environment(settings)
    done = acuity("fit", "test_resnet", "32", "--device", "cuda:1", "--most", "32", "--json", environment=on_gpus)
    found = json.loads(done.stdout)
    assert found["device"] == "Stand-in GPU"
    assert found["fits"][0]["verified"] == 32
    assert [memory["physical"] for memory in used(settings)] == [1]


def test_script_of_a_slurm_job_runs_workers_that_share_its_gpu(
    experiment: Path, environment: dict[str, str], database_url: str, settings: Settings, tmp_path: Path, home: Path
) -> None:
    with experiment.open("a") as stream:
        stream.write(f'\n[cluster]\ncpus_per_worker = 1\nlogs = "{tmp_path / "logs"}"\n')
    folder = tmp_path / "bin"
    record = write_fake_mps(folder)
    script = tmp_path / "script"
    for name, text in {
        "sbatch": f"#!/bin/sh\ncp \"$1\" {script}; echo 'Submitted batch job 4711'\n",
        "srun": _FAKE_SRUN,
        "scontrol": "#!/bin/sh\nexit 1\n",
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    secret = home / ".pgpass"
    url = parse_url(database_url)
    assert url.password is not None
    escaped = url.password.replace(":", "\\:")
    secret.write_text(f"*:*:{url.database}:{url.username}:{escaped}\n")
    secret.chmod(0o600)
    storage = database_url.replace(f":{url.password}@", "@").replace("+psycopg2", "")
    site = {"PATH": f"{folder}:{os.environ['PATH']}", "ACUITY_STORAGE": storage}
    on_gpus = environment | site | standin_gpu.environment(settings)
    shares = ["--workers", "2", "--workers-per-gpu", "2"]
    acuity("launch", str(experiment), "--cluster", "slurm", *shares, environment=on_gpus)
    job = on_gpus | {"CUDA_VISIBLE_DEVICES": "1", "TASKS": "2"}  # as Slurm gives a job its GPU
    subprocess.run(["bash", str(script)], env=job, check=True, capture_output=True, timeout=250)
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    memories = used(settings)
    assert [memory["physical"] for memory in memories] == [1, 1]
    for memory in memories:
        assert 2 * (memory["fraction"] * memory["total"] + settings.context_bytes) <= memory["total"]
    assert record.read_text().splitlines()[-1].startswith("quit")


def test_workers_of_a_container_host_take_a_gpu_each(
    experiment: Path, environment: dict[str, str], database_url: str, settings: Settings
) -> None:
    on_gpus = environment | standin_gpu.environment(settings)
    services = yaml.safe_load(_COMPOSE.read_text())["services"]
    launch = [word.replace("/experiment.toml", str(experiment)) for word in services["launch"]["command"]]
    worker = [re.sub(r"\$\{ACUITY_EXPERIMENT.*\}", "tiny", word) for word in services["worker"]["command"]]
    acuity(*launch, environment=on_gpus)
    workers = [subprocess.Popen([*ACUITY, *worker], env=on_gpus, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=250) for process in workers] == [0, 0]
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    assert [memory["physical"] for memory in used(settings)] == [0, 1]
