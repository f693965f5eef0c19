"""Workers that share a GPU through NVIDIA MPS. A program that records its calls replaces nvidia-cuda-mps-control."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acuity.study.fleet import mps
from acuity.study.fleet.mps import shared_gpu_of_job, shared_gpus
from acuity.study.fleet.placement import Placement
from support.fake_mps import write_fake_mps
from support.waiting import wait_until

UUIDS = {"0": "GPU-aaaa", "3": "GPU-bbbb"}


def placements(sharing: int, *, names: str = "03") -> list[Placement]:
    return [Placement("cuda", sharing, 1, {"CUDA_VISIBLE_DEVICES": name}) for _ in range(sharing) for name in names]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of nvidia-cuda-mps-control's calls."""
    record = write_fake_mps(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "_find_uuids", lambda names: {name: UUIDS[name] for name in names})
    return record


def test_daemon_serves_the_block_with_pipes_of_its_own(calls: Path) -> None:
    with shared_gpus(placements(4)) as clients:
        start, answer = calls.read_text().splitlines()
        _, pipes, gpus = start.split()
        assert gpus == "GPU-aaaa,GPU-bbbb"
        assert answer == f"get_default_active_thread_percentage {pipes}"
        assert {client.environment["CUDA_MPS_PIPE_DIRECTORY"] for client in clients} == {pipes}
        assert [client.environment["CUDA_VISIBLE_DEVICES"] for client in clients] == ["GPU-aaaa", "GPU-bbbb"] * 4
        assert {client.environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] for client in clients} == {"50"}
    assert calls.read_text().splitlines()[2] == f"quit -t 10 {pipes}"
    assert not Path(pipes).exists()


@pytest.mark.usefixtures("calls")
def test_clients_have_separate_cores_if_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, expected in ((9, [(0, 1), (2, 3), (4, 5), (6, 7)]), (3, [()] * 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)))
        with shared_gpus(placements(2)) as clients:
            assert [client.cores for client in clients] == expected


def test_daemon_ends_also_after_an_error_in_the_block(calls: Path) -> None:
    with pytest.raises(KeyboardInterrupt), shared_gpus(placements(2)):
        raise KeyboardInterrupt
    assert "quit" in calls.read_text()


def test_nothing_starts_where_no_worker_shares_a_gpu(calls: Path) -> None:
    alone = [Placement("cuda", 1, 1, {"CUDA_VISIBLE_DEVICES": "0"}), Placement("cpu", sharing=2, threads=1)]
    with shared_gpus(alone) as unchanged:
        assert unchanged == alone
    assert calls.read_text() == ""


def test_without_mps_one_line_says_what_time_slices_bring(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with shared_gpus(placements(2)) as unchanged:
        assert unchanged == placements(2)
    with shared_gpu_of_job(2) as variables:
        assert variables == {}
    lines = caplog.messages
    assert len(lines) == 2, "one of a launch, one of a Slurm job"
    for line in lines:
        assert line.startswith("nvidia-cuda-mps-control is not on the PATH; 2 workers on a GPU run in time slices")


def test_daemon_that_does_not_start_leaves_time_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_fake_mps(tmp_path / "bin", broken=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(mps, "_find_uuids", lambda names: {name: UUIDS[name] for name in names})
    with shared_gpus(placements(2)) as unchanged:
        assert unchanged == placements(2)
    (line,) = caplog.messages
    assert "did not start (no permission); 2 workers on a GPU run in time slices" in line


def test_daemon_of_the_user_is_used_and_left_alone(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/site/mps")
    with shared_gpus(placements(2)) as clients:
        assert {client.environment["CUDA_MPS_PIPE_DIRECTORY"] for client in clients} == {"/site/mps"}
    with shared_gpu_of_job(2) as variables:
        assert variables["CUDA_MPS_PIPE_DIRECTORY"] == "/site/mps"
    assert calls.read_text() == ""


def test_first_worker_of_a_slurm_job_ends_the_daemon_after_the_others(
    calls: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("SLURM_JOB_ID", f"test{os.getpid()}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    code = """
import sys, time
from acuity.study.fleet.mps import shared_gpu_of_job
with shared_gpu_of_job(2) as variables:
    print(variables["CUDA_MPS_PIPE_DIRECTORY"], flush=True)
    time.sleep(float(sys.argv[1]))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, seconds],
            env=os.environ | {"SLURM_LOCALID": local},
            stdout=subprocess.PIPE,
            text=True,
        )
        for local, seconds in (("1", "100"), ("0", "2"))
    ]
    other, first = processes
    try:
        assert other.stdout is not None
        pipes = other.stdout.readline().strip()
        wait_until(lambda: "get_default" in calls.read_text())
        time.sleep(3)
        assert "quit" not in calls.read_text()
        assert first.poll() is None
        other.kill()
        printed, _ = first.communicate(timeout=60)
        assert printed.strip() == pipes
        assert first.returncode == 0
        assert "quit" in calls.read_text()
        assert not Path(pipes).exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
