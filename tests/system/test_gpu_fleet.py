"""`acuity launch` with real worker processes on stand-in GPUs."""

import json
from pathlib import Path

import pytest

from support import standin_gpu
from support.commands import acuity
from support.postgres import count_trials
from support.standin_gpu.settings import GIB, Settings
from support.tiny_experiment import write_tiny_experiment

pytestmark = pytest.mark.standin


def launch_on_gpus(
    experiment: Path, *arguments: str, environment: dict[str, str], settings: Settings
) -> list[dict[str, dict[str, int]]]:
    """Run `acuity launch` to its end; returns the counts of each process that used a GPU."""
    assert settings.folder is not None
    on_gpus = environment | standin_gpu.environment(settings)
    acuity("launch", str(experiment), *arguments, environment=on_gpus)
    counts = [json.loads(file.read_text()) for file in Path(settings.folder).glob("counts-*.json")]
    return [process for process in counts if process["kernels_launched"]]


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    return write_tiny_experiment(tmp_path, phantoms, labels='["Cardiomegaly"]', trials=4)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(devices=2, total_memory=16 * GIB, folder=str(tmp_path / "gpus"))


@pytest.mark.parametrize("choice", ["cuda", pytest.param("cuda:1", marks=pytest.mark.slow)])
def test_a_worker_trains_on_the_gpu_within_its_limit(
    experiment: Path, environment: dict[str, str], database_url: str, settings: Settings, choice: str
) -> None:
    (worker,) = launch_on_gpus(
        experiment, "--workers", "1", "--device", choice, environment=environment, settings=settings
    )
    assert count_trials(database_url, "state = 'COMPLETE'") == 4
    (memory,) = worker["memory"]
    assert memory["physical"] == (1 if choice == "cuda:1" else 0)
    assert 0.5 < memory["fraction"] < 1


@pytest.mark.slow
def test_workers_that_share_gpus_have_limits_that_fit_them(
    experiment: Path, environment: dict[str, str], database_url: str, settings: Settings
) -> None:
    workers = launch_on_gpus(experiment, "--workers-per-gpu", "2", environment=environment, settings=settings)
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    memories = [worker["memory"][0] for worker in workers]
    assert {memory["physical"] for memory in memories} <= {0, 1}
    for memory in memories:
        assert 2 * (memory["fraction"] * memory["total"] + settings.context_bytes) <= memory["total"]


@pytest.mark.slow
@pytest.mark.parametrize("disguise", ["OutOfMemoryError", "AcceleratorError", "cublas", "find"])
def test_trials_survive_an_allocation_that_fails(
    experiment: Path, environment: dict[str, str], database_url: str, tmp_path: Path, disguise: str
) -> None:
    failing = Settings(out_of_memory=disguise, fail_allocation=12, folder=str(tmp_path / "gpus"))
    (worker,) = launch_on_gpus(experiment, "--workers", "1", environment=environment, settings=failing)
    assert sum(memory["out_of_memory_errors"] for memory in worker["memory"]) == 1
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 4
    assert count_trials(database_url, "state = 'FAIL' and not requeued") == 0
