"""benchmarks/gpu.py on a stand-in GPU: the code of every step runs. Its figures mean nothing there."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support import standin_gpu
from support.fake_mps import write_fake_mps
from support.standin_gpu.settings import GIB, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def measure(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_SCRIPT), "--short", "--minutes", "20", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def on_a_gpu(tmp_path: Path) -> dict[str, str]:
    settings = Settings(total_memory=16 * GIB, folder=str(tmp_path / "gpus"))
    return os.environ | standin_gpu.environment(settings) | {"OMP_NUM_THREADS": "1"}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_every_step_runs_without_optuna_and_a_second_run_keeps_its_results(
    on_a_gpu: dict[str, str], tmp_path: Path
) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ("optuna", "sqlalchemy", "psycopg2"):
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is absent')")
    record = write_fake_mps(tmp_path / "bin")
    bare = on_a_gpu | {
        "PYTHONPATH": f"{absent}:{on_a_gpu['PYTHONPATH']}",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    out = tmp_path / "out"
    done = measure("--out", str(out), environment=bare)
    assert done.returncode == 0, done.stderr
    found = results(out)
    assert {name: result["status"] for name, result in found.items()} == dict.fromkeys(found, "done"), found
    figures = {name: result["figures"] for name, result in found.items()}
    assert figures["device"]["limit_is_enforced"]
    assert figures["tests"]["status"] == 0
    assert figures["streamed"]["is_flat"]
    assert set(figures["workers"]) == set(figures["workers_with_MPS"]) == {"batch", "resolution", "1", "2"}
    assert "quit" in record.read_text()
    assert figures["throughput_test_resnet_32"]["acuity"]["images_per_second"] > 0
    assert figures["feasible_batch"]["test_resnet"]["probed"] > 0
    assert "is absent" in figures["launch"]["skipped"]

    (out / "profile.json").unlink()
    again = measure("--out", str(out), environment=bare)
    assert again.stdout.count(": kept") == len(found) - 1
    assert "profile: done" in again.stdout


def test_a_small_launch_resumes_after_sigterm(on_a_gpu: dict[str, str], tmp_path: Path) -> None:
    done = measure("--only", "launch", "--out", str(tmp_path), environment=on_a_gpu)
    assert done.returncode == 0, done.stderr
    figures = results(tmp_path)["launch"]["figures"]
    assert figures["budget_is_met"], figures
    assert figures["resumed_trials"] > 0


def test_without_a_gpu_one_line_says_so() -> None:
    done = measure(environment=os.environ)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py: PyTorch sees no GPU here, so nothing is measured\n"
