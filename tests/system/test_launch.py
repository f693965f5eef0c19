"""`acuity launch` with real worker processes, from the experiment file to the answer, and the end of a fleet."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acuity.study.errors import UsageError
from acuity.study.fleet import supervisor
from acuity.study.fleet.placement import FleetOptions, place_workers
from acuity.study.fleet.restarts import RestartPolicy
from acuity.study.fleet.supervisor import _end, _restart_crashed, _Worker
from acuity.study.results.status import EpochRates, RunningTrial
from support.commands import ACUITY, acuity
from support.postgres import count_trials
from support.processes import find_processes
from support.terminal import Terminal
from support.tiny_experiment import write_tiny_experiment
from support.waiting import wait_until


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    return write_tiny_experiment(tmp_path, phantoms)


def workers_alive(home: Path) -> list[int]:
    """The `acuity worker` processes of this test, found by its home folder."""

    def is_ours(folder: Path) -> bool:
        command, variables = (folder / "cmdline").read_bytes().split(b"\0"), (folder / "environ").read_bytes()
        return b"worker" in command and f"HOME={home}".encode() in variables

    return find_processes(is_ours)


def launch_until_two_trials_run(
    experiment: Path, *, epochs: int, environment: dict[str, str], database_url: str
) -> "subprocess.Popen[bytes]":
    """Launch two workers in a new session, and return a second after both have a trial."""
    experiment.write_text(experiment.read_text().replace("epochs = 2", f"epochs = {epochs}"))
    command = [*ACUITY, "launch", str(experiment), "--workers", "2"]
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_until(lambda: count_trials(database_url, "state = 'RUNNING'") == 2, 60)
    time.sleep(1)
    return launcher


def test_an_experiment_runs_from_its_file_to_the_answer(
    experiment: Path, environment: dict[str, str], database_url: str
) -> None:
    launched = acuity("launch", str(experiment), "--workers", "2", environment=environment)
    assert "Cardiomegaly 5/5" in launched.stderr
    assert "best px" in launched.stdout

    answer = json.loads(acuity("best", "tiny", "--format", "json", environment=environment).stdout)
    assert answer["experiment"] == "tiny"
    assert [entry["label"] for entry in answer["labels"]] == ["Cardiomegaly", "Nodule"]
    for entry in answer["labels"]:
        assert entry["trials"]["complete"] + entry["trials"]["pruned"] == 5
        assert (entry["trials"]["running"], entry["trials"]["failed"]) == (0, 0)
        assert entry["reference"] is entry["smallest_adequate"] is None
        best = entry["best"]
        assert set(best) == {
            "resolution", "architecture", "batch_size", "feasible_batch_size", "learning_rate",
            "auc", "auc_low", "auc_high", "split", "seeds",
        }  # fmt: skip
        assert best["auc_low"] < best["auc"] < best["auc_high"]
        assert (best["split"], best["seeds"]) == ("validation", 0)
        at_best = [at for at in entry["by_resolution"] if at["resolution"] == best["resolution"]]
        assert at_best[0]["auc"] == best["auc"]
        assert all(at["complete"] >= 2 for at in entry["by_resolution"])

    again = acuity("launch", str(experiment), environment=environment)
    assert "has its 5 trials" in again.stderr
    assert count_trials(database_url, "true") == 10

    pupil = experiment.with_name("pupil.toml")
    text = experiment.read_text().replace('name = "tiny"', 'name = "pupil"')
    pupil.write_text(text.replace("[search]", '[search]\n        learn_from = ["tiny"]'))
    taught = acuity("launch", str(pupil), "--workers", "0", environment=environment)
    assert re.search(r"learn from \d+ trials of tiny", taught.stderr)
    pupil.write_text(text.replace("[search]", '[search]\n        learn_from = ["tyni"]').replace('"pupil"', '"third"'))
    refused = acuity("launch", str(pupil), "--workers", "0", environment=environment, status=1)
    assert 'search.learn_from names "tyni", which this storage does not have (there are: tiny, pupil)' in refused.stderr

    assert "Nodule" in acuity("status", "tiny", environment=environment).stdout
    refused = acuity("delete", "tiny", environment=environment, status=1)
    assert "10 trials" in refused.stderr
    acuity("delete", "tiny", "--yes", environment=environment)
    gone = acuity("best", "tiny", environment=environment, status=1)
    assert 'no experiment named "tiny"' in gone.stderr


def test_a_changed_file_under_an_old_name_is_refused_with_the_difference(
    experiment: Path, environment: dict[str, str]
) -> None:
    acuity("launch", str(experiment), "--workers", "0", environment=environment)
    experiment.write_text(experiment.read_text().replace("epochs = 2", "epochs = 3"))
    refused = acuity("launch", str(experiment), environment=environment, status=1)
    assert "training.epochs: 2 -> 3" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_launch_leaves_nothing_running_however_it_ends(
    experiment: Path, environment: dict[str, str], home: Path, database_url: str, how: signal.Signals
) -> None:
    """On Ctrl-C, a closed terminal and SIGKILL, which a process cannot handle."""
    launcher = launch_until_two_trials_run(experiment, epochs=300, environment=environment, database_url=database_url)
    os.killpg(launcher.pid, how)
    assert launcher.wait(timeout=60) == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    wait_until(lambda: workers_alive(home) == [], 60 if how is signal.SIGKILL else 0.1)
    assert count_trials(database_url, "state = 'RUNNING'") == 0
    assert count_trials(database_url, "requeued") == 2
    assert count_trials(database_url, "state = 'FAIL' and not requeued") == 0


@pytest.mark.slow
def test_trial_of_a_killed_worker_resumes_at_its_last_epoch(
    experiment: Path, environment: dict[str, str], home: Path, database_url: str
) -> None:
    launcher = launch_until_two_trials_run(experiment, epochs=40, environment=environment, database_url=database_url)
    os.kill(workers_alive(home)[0], signal.SIGKILL)
    assert launcher.wait(timeout=200) == 0
    assert count_trials(database_url, "state in ('COMPLETE', 'PRUNED')") == 10
    assert count_trials(database_url, "state in ('RUNNING', 'WAITING')") == 0
    assert count_trials(database_url, "requeued") == 1


@pytest.mark.slow
def test_launches_in_the_background_add_workers_show_their_trials_and_end_by_acuity_stop(
    experiment: Path, environment: dict[str, str], home: Path, database_url: str
) -> None:
    experiment.write_text(experiment.read_text().replace("epochs = 2", "epochs = 300"))
    nothing = acuity("stop", "tiny", environment=environment, status=1)
    assert "no launch of tiny runs" in nothing.stderr
    for _ in range(2):
        launched = acuity("launch", str(experiment), "--workers", "1", "--detach", environment=environment)
        assert "runs in the background" in launched.stderr
        assert "10 trials to run" in launched.stderr
        assert "of checkpoints" in launched.stderr
        assert launched.stdout == ""
    wait_until(lambda: count_trials(database_url, "state = 'RUNNING'") == 2, 60)
    time.sleep(3)
    shown = acuity("status", "tiny", environment=environment).stdout
    assert shown.count("test_resnet") == 2
    assert shown.count("/300") == 2
    assert shown.count("ago") == 2
    # The lock file of a killed launch remains, and another process may have its process id.
    forged = next((home / ".local/state").rglob("*.launch")).with_name("tiny.1.launch")
    forged.write_text(json.dumps({"process": os.getpid(), "experiment": "tiny", "storage": "postgresql:///x"}))
    stopped = acuity("stop", "tiny", environment=environment)
    assert "stopped 2 launches of tiny" in stopped.stderr
    assert workers_alive(home) == []
    assert not list((home / ".local/state").rglob("*.launch"))
    assert (count_trials(database_url, "state = 'RUNNING'"), count_trials(database_url, "requeued")) == (0, 2)


def test_workers_are_distributed_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def gpus(device: str = "auto", **how: int) -> list[tuple[str, int]]:
        placements = place_workers(FleetOptions(device=device, **how))
        return [(each.environment["CUDA_VISIBLE_DEVICES"], each.sharing) for each in placements]

    assert gpus() == [("0", 1), ("1", 1)]
    assert gpus(per_gpu=2) == [("0", 2), ("1", 2), ("0", 2), ("1", 2)]
    assert gpus(workers=3) == [("0", 2), ("1", 2), ("0", 2)]
    assert gpus("cuda:1", per_gpu=2) == [("1", 2), ("1", 2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a,GPU-7b")
    assert gpus() == [("GPU-5a", 1), ("GPU-7b", 1)]
    with pytest.raises(UsageError, match="cuda:2 cannot be used here: there are 2"):
        gpus("cuda:2")
    for named in ("GPU-5a,", "GPU-5a,-1,GPU-7b"):  # CUDA ignores the first invalid entry and all after it
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert gpus() == [("GPU-5a", 1)]
    with pytest.raises(UsageError, match="no GPU here"):
        place_workers(FleetOptions(device="cpu", per_gpu=2))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="device cuda:1 cannot be used here: PyTorch sees no GPU"):
        place_workers(FleetOptions(device="cuda:1"))


_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


def test_a_second_signal_kills_the_workers_that_do_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_EXIT_S", 600.0)
    fleet, said = [], []
    for number in range(2):
        (log := tmp_path / f"{number}.log").touch()
        fleet.append(
            _Worker([sys.executable, "-c", _STUBBORN], log, dict(os.environ), RestartPolicy(outage_limit_s=60))
        )
        fleet[-1].start()
        wait_until(lambda log=log: "up" in log.read_text(), 60)  # type: ignore[misc]

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()

    with pytest.raises(KeyboardInterrupt):
        _end(fleet, say)
    assert said[0] == "Stopping: 2 workers hand their trials back, at most 600 s. Ctrl-C again ends them now."
    assert said[1].startswith("2 workers ended at once.")
    assert [each.exit_status() for each in fleet] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_ctrl_c_is_answered_while_the_workers_hand_their_trials_back(
    experiment: Path, environment: dict[str, str], database_url: str
) -> None:
    experiment.write_text(experiment.read_text().replace("epochs = 2", "epochs = 300"))
    terminal = Terminal(["launch", str(experiment), "--workers", "2"], environment)
    try:
        wait_until(lambda: count_trials(database_url, "state = 'RUNNING'") == 2, 120)
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Stopping: 2 workers hand their trials back", 60)
        assert terminal.wait() == 130
        assert "the same command continues" in terminal.shown
    finally:
        terminal.close()
    assert count_trials(database_url, "state = 'RUNNING'") == 0


def test_error_of_one_worker_does_not_end_the_others(tmp_path: Path) -> None:
    def worker(number: int, script: str) -> _Worker:
        (log := tmp_path / f"{number}.log").touch()
        return _Worker([sys.executable, "-c", script], log, dict(os.environ), RestartPolicy(outage_limit_s=60))

    full = "import sys; sys.exit('GPU 3 is full')"
    fleet = [worker(0, full), worker(1, "import time; time.sleep(2)")]
    for each in fleet:
        each.start()
    seen = []
    while _restart_crashed(fleet):
        seen.append([each.exit_status() for each in fleet])
        time.sleep(0.1)
    assert [1, None] in seen
    assert [each.exit_status() for each in fleet] == [1, 0]
    alone = worker(2, full)
    alone.start()
    assert alone.process is not None
    alone.process.wait()
    with pytest.raises(UsageError, match=r"a worker ended with an error: GPU 3 is full \(log: .*2.log"):
        _restart_crashed([alone])


def test_pace_of_a_running_trial_is_computed_from_the_epochs_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = EpochRates()
    seen = []
    for at, epoch in [(0, 3), (5, 3), (10, 4), (20, 5), (25, 5), (30, 6)]:
        monkeypatch.setattr("time.monotonic", lambda at=at: float(at))
        seen.append(clock.epochs_per_second(RunningTrial("Nodule", 7, 64, "resnet34", epoch, 0.7, "CPU", 1.0)))
    assert seen == [None, None, None, 0.1, 0.1, 0.1]


@pytest.fixture(autouse=True)
def _nothing_left_behind(home: Path) -> Iterator[None]:
    yield
    for process in workers_alive(home):
        os.kill(process, signal.SIGKILL)


def test_launch_of_no_workers_registers_the_experiment_and_trains_nothing(
    experiment: Path, home: Path, environment: dict[str, str]
) -> None:
    done = acuity("launch", str(experiment), "--workers", "0", environment=environment)
    assert "tiny is registered: `acuity worker tiny` runs its trials" in done.stderr
    assert done.stdout == ""
    assert workers_alive(home) == []
    assert "Nodule" in acuity("status", "tiny", environment=environment).stdout
