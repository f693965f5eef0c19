"""Trials of real workers that run out of memory, and worker processes whose memory has grown."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import text

from acuity.objectives.device.device import GIB, open_device
from acuity.storage.database import Database
from acuity.storage.feasible_batches import FeasibleBatchKey, read_feasible_batch, write_feasible_batch
from acuity.study.registry.register import read_or_update
from support.commands import acuity

BUDGET_GIB = 0.3
TIGHT_KEY = FeasibleBatchKey(
    device="",
    memory_budget_bytes=int(BUDGET_GIB * GIB),
    architecture="test_resnet",
    input_size=256,
    precision="fp32",
    channels_last=True,
    torch_version=torch.__version__,
)


@pytest.fixture
def file(tmp_path: Path, phantoms: Path) -> Path:
    file = tmp_path / "tight.toml"
    file.write_text(
        f"""
        name = "tight"
        labels = ["Cardiomegaly"]
        [data]
        index = "{phantoms}"
        images = "{phantoms.parent / "images"}"
        split = "tight.split.csv"
        [search]
        resolutions = [32]
        architectures = ["test_resnet"]
        trials = 2
        min_complete_per_resolution = 2
        batch = "largest"
        min_updates_per_epoch = 1
        [training]
        epochs = 1
        network_input = 256
        [workers]
        memory_budget_gib = {BUDGET_GIB}
        """
    )
    return file


@pytest.mark.slow
def test_trial_that_runs_out_of_memory_continues_at_half_the_batch_and_lowers_the_stored_limit(
    file: Path, environment: dict[str, str], database: Database
) -> None:
    # Memory had room for 96 images when the limit was found. Another process has taken some since.
    key = replace(TIGHT_KEY, device=open_device("cpu", workers=1).name)
    write_feasible_batch(database, key, 96)
    acuity("launch", str(file), "--workers", "1", "--device", "cpu", environment=environment)
    with database.engine.connect() as connection:
        trials = connection.execute(
            text("select trial_id, state, batch_size, batch_cap, reason from acuity.all_trials order by number")
        ).all()
        query = text("select trial_id, value_json::int from trial_user_attributes where key = 'out_of_memory'")
        halvings = dict(connection.execute(query).all())
    first, second = trials
    assert [trial.state for trial in trials] == ["COMPLETE", "COMPLETE"], [*trials, halvings]
    assert halvings == {first.trial_id: halvings[first.trial_id]}, "the second trial did not run out of memory"
    assert first.batch_size == second.batch_size == 96 // 2 ** halvings[first.trial_id]
    assert (first.batch_cap, second.batch_cap) == ("memory", "memory")
    assert read_feasible_batch(database, key) == first.batch_size


@pytest.mark.slow
def test_worker_whose_memory_has_grown_is_replaced_by_a_new_process(
    file: Path, environment: dict[str, str], database: Database
) -> None:
    acuity("launch", str(file), "--workers", "1", "--device", "cpu", environment=environment)
    file.write_text(file.read_text().replace("trials = 2", "trials = 4"))
    read_or_update(database, str(file))
    grown = (
        "import sys, acuity.study.worker.loop\n"
        "acuity.study.worker.loop._GROWTH_BYTES = -(2**40)\n"  # every trial counts as growth
        "sys.argv = ['acuity', 'worker', 'tight', '--device', 'cpu', '-v']\n"
        "from acuity.study.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", grown], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a new process replaces it") == 1
    with database.engine.connect() as connection:
        assert connection.scalar(text("select count(*) from acuity.all_trials where state = 'COMPLETE'")) == 4
