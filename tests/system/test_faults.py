"""No trial is lost when workers or Postgres are killed, stopped or disconnected, or when the disk is full."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial
from sqlalchemy import URL

from acuity.objectives.training.interface import Hyperparameters, Outcome
from acuity.storage.database import open_storage
from acuity.storage.embedded.server import embedded_server
from acuity.study.config.loading import load
from acuity.study.dataset.image_set import open_image_set, training_images
from acuity.study.registry.register import register
from support.postgres import count_trials, query
from support.waiting import wait_until
from support.worker_processes import count_epochs, fix_initial_trials, kill_processes

pytestmark = pytest.mark.slow

# A fork of a process that has imported torch starts a worker in milliseconds.
_processes = get_context("forkserver")
_processes.set_forkserver_preload(["acuity.study.worker.loop", "test_faults"])

EPOCHS = 4
ZONES = ("UTC", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati")


@dataclass(eq=False)
class Fleet:
    """A registered experiment and its worker processes."""

    file: Path
    url: str
    folder: Path
    processes: list[BaseProcess] = field(default_factory=list)

    def register(self) -> None:
        experiment = load(self.file)
        image_set = open_image_set(experiment)
        with open_storage(self.url) as database:
            registered = register(
                database,
                experiment,
                image_set.identity,
                training_images=training_images(image_set, experiment.labels),
            )
            if len(experiment.search.resolutions) == 1:
                fix_initial_trials(database, registered)

    def start(self, workers: int = 1, *, quick: bool = False, deadly_seed: int | None = None) -> list[BaseProcess]:
        started = []
        for _ in range(workers):
            number = len(self.processes)
            process = _processes.Process(
                target=be_a_worker,
                args=(self.url, str(self.folder), number),
                kwargs={"quick": quick, "deadly_seed": deadly_seed},
                daemon=True,
            )
            process.start()
            self.processes.append(process)
            started.append(process)
        return started

    def run(self, workers: int, **how: Any) -> None:
        """Run until every budget is finished; crashed workers are restarted, as in a launch."""
        alive = self.start(workers, **how)
        while alive:
            for process in [process for process in alive if process.exitcode is not None]:
                alive.remove(process)
                if process.exitcode != 0:
                    assert process.exitcode < 0, self.log()
                    alive += self.start(1, **how)
            time.sleep(0.05)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def epochs_trained(self) -> int:
        """The number of epochs that all attempts finished."""
        return len((self.folder / "epochs").read_bytes())

    def trials(self) -> list[FrozenTrial]:
        with open_storage(self.url) as database:
            names = optuna.get_all_study_names(storage=database.storage)
            studies = [optuna.load_study(study_name=name, storage=database.storage) for name in sorted(names)]
            return [trial for study in studies for trial in study.get_trials()]

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return query(self.url, statement)

    def count(self, where: str) -> int:
        return count_trials(self.url, where)

    def values(self) -> dict[tuple[str, int], float]:
        """The value of each trial, by label and number of the first attempt. A trial has at most one value."""
        rows = self.sql("select label, coalesce(origin, number), value from acuity.all_trials where state = 'COMPLETE'")
        values = {(label, origin): value for label, origin, value in rows}
        assert len(values) == len(rows), "a trial has two values"
        return values


def be_a_worker(url: str, folder: str, number: int, *, quick: bool, deadly_seed: int | None) -> None:
    """Run `acuity worker` in this process and count its epochs."""
    from acuity.study.cli import main as cli
    from acuity.study.worker import training as claimed_training

    os.environ["ACUITY_STORAGE"] = url
    os.environ["TZ"] = ZONES[number % len(ZONES)]
    time.tzset()
    log = os.open(f"{folder}/worker-{number:03d}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    count_epochs(f"{folder}/epochs", wait=True)
    if quick or deadly_seed is not None:
        claimed_training.train = lambda *args, **keywords: quick_training(*args, deadly_seed=deadly_seed, **keywords)
    sys.argv = ["acuity", "worker", "tiny", "--device", "cpu", "--workers", "4", "--threads", "1"]
    cli.main()


def quick_training(
    hyperparameters: Hyperparameters,
    *_: Any,
    seed: int,
    report: Callable[[int, float], bool],
    deadly_seed: int | None,
    **__: Any,
) -> Outcome:
    """Report epochs without training. deadly_seed kills the process."""
    if seed == deadly_seed:
        os.kill(os.getpid(), signal.SIGKILL)
    auc = 0.5 + 0.4 * np.random.default_rng(seed).random()
    epochs = range(1, hyperparameters.epochs + 1)
    stopped = next((epoch for epoch in epochs if report(epoch, auc)), None)
    return Outcome(auc, 0.01, 0.5, 0.5, stopped or epochs[-1], 0.1, 1.0, 1.0, stopped is not None, np.zeros(1))


@pytest.fixture(scope="module")
def make_fleet(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fleet]]:
    """Make a fleet. By default, all trials of its experiment are fixed before the start and none is pruned."""
    fleets: list[Fleet] = []
    shared = tmp_path_factory.mktemp("shared")

    def make(url: str, **changes: str) -> Fleet:
        folder = tmp_path_factory.mktemp("fleet")
        settings = {"labels": '["Cardiomegaly", "Nodule"]', "trials": "4", "patience_min": "10", "max_retries": "50"}
        settings |= {"resolutions": "[32]", "minimum": "4", "checkpoint_s": "0.001"}
        settings |= {"epochs": str(EPOCHS), "checkpoints": str(folder / "checkpoints")} | changes
        file = folder / "tiny.toml"
        file.write_text(
            f"""
            name = "tiny"
            labels = {settings["labels"]}
            [data]
            index = "{phantoms}"
            images = "{phantoms.parent / "images"}"
            split = "{shared / "tiny.split.csv"}"
            cache = "{shared / "cache"}"
            [search]
            resolutions = {settings["resolutions"]}
            architectures = ["test_resnet"]
            trials = {settings["trials"]}
            min_complete_per_resolution = {settings["minimum"]}
            min_batch_size = 4
            max_batch_size = 8
            min_updates_per_epoch = 5
            [training]
            epochs = {settings["epochs"]}
            [workers]
            heartbeat_s = 1
            grace_s = 5
            memory_budget_gib = 2
            max_retries = {settings["max_retries"]}
            storage_patience_min = {settings["patience_min"]}
            checkpoints = "{settings["checkpoints"]}"
            checkpoint_s = {settings["checkpoint_s"]}
            """
        )
        (folder / "epochs").touch()
        fleet = Fleet(file, url, folder)
        fleets.append(fleet)
        fleet.register()
        return fleet

    yield make
    for fleet in fleets:
        kill_processes(fleet.processes)


@pytest.fixture(scope="module")
def quiet_values(make_fleet: Callable[..., Fleet], server: URL) -> dict[tuple[str, int], float]:
    """The values of the trials in a run without faults."""
    query(server, "create database quiet")
    fleet = make_fleet(server.set(database="quiet").render_as_string(hide_password=False))
    fleet.run(2)
    assert len(fleet.values()) == 8
    assert fleet.epochs_trained() == 8 * EPOCHS
    return fleet.values()


def mid_trial(fleet: Fleet, running: int, *, epochs: int = 2) -> None:
    """Wait until this number of trials runs and some epochs have been finished since the call."""
    before = fleet.epochs_trained()
    wait_until(lambda: fleet.count("state = 'RUNNING'") >= running and fleet.epochs_trained() >= before + epochs)


def kill(process: BaseProcess, number: int = signal.SIGKILL) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def check_budget(fleet: Fleet, trials: int, *, labels: int = 2) -> None:
    counts = fleet.sql("select count(*) from acuity.all_trials where state in ('COMPLETE', 'PRUNED') group by label")
    assert counts == [(trials,)] * labels
    assert fleet.count("state in ('RUNNING', 'WAITING')") == 0


def test_eight_racing_workers_meet_the_budget_exactly_and_a_raised_one_too(
    make_fleet: Callable[..., Fleet], empty_database_url: str
) -> None:
    fleet = make_fleet(empty_database_url, labels='["Cardiomegaly", "Nodule", "Fibrosis"]', trials="40")
    fleet.run(8, quick=True)
    check_budget(fleet, 40, labels=3)
    assert fleet.count("state = 'PRUNED'") > 0
    fleet.file.write_text(fleet.file.read_text().replace("trials = 40", "trials = 45"))
    fleet.register()
    fleet.run(8, quick=True)
    check_budget(fleet, 45, labels=3)
    assert fleet.count("true") == 3 * 45, fleet.log()


def test_trials_of_killed_workers_resume_at_their_last_epoch_and_end_with_the_same_value(
    make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float], database_url: str
) -> None:
    fleet = make_fleet(database_url)
    kills = 0
    for _ in range(3):
        workers = fleet.start(4)
        mid_trial(fleet, 4)
        for worker in workers[:3]:
            kill(worker)
        kills += 3
        workers[3].join(timeout=0)
        if workers[3].is_alive():
            kill(workers[3], signal.SIGTERM)
        workers[3].join()
    fleet.run(2)
    check_budget(fleet, 4)
    assert fleet.values() == quiet_values
    # A kill interrupts at most one epoch, and no finished epoch is trained again.
    assert fleet.epochs_trained() <= 8 * EPOCHS + kills, fleet.log()
    assert fleet.count("state = 'FAIL' and not requeued") == 0
    assert "another one resumes it" in fleet.log() or "another worker runs it now" in fleet.log()


def test_worker_suspended_beyond_the_grace_period_drops_the_trial_that_another_worker_took(
    make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float], database_url: str
) -> None:
    fleet = make_fleet(database_url)
    [asleep] = fleet.start()
    mid_trial(fleet, 1)
    kill(asleep, signal.SIGSTOP)
    fleet.start(2)
    wait_until(lambda: fleet.count("requeued") == 1)
    wait_until(lambda: fleet.count("state = 'COMPLETE' and origin <> number") == 1)
    kill(asleep, signal.SIGCONT)
    for process in fleet.processes:
        process.join()
        assert process.exitcode == 0, fleet.log()
    assert "another worker runs it now; dropped" in fleet.log()
    check_budget(fleet, 4)
    assert fleet.values() == quiet_values


def test_sigterm_hands_the_trial_back_with_its_last_epoch_and_exits_0(
    make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float], database_url: str
) -> None:
    fleet = make_fleet(database_url)
    [worker] = fleet.start()
    mid_trial(fleet, 1)
    kill(worker, signal.SIGTERM)
    worker.join(timeout=10)
    assert worker.exitcode == 0, fleet.log()
    assert (fleet.count("requeued"), fleet.count("state = 'RUNNING'")) == (1, 0)
    trained = fleet.epochs_trained()
    fleet.run(1)
    assert fleet.values() == quiet_values
    assert fleet.epochs_trained() == 8 * EPOCHS
    [resumed] = [trial for trial in fleet.trials() if trial.user_attrs.get("attempt") == 2]
    assert 2 <= resumed.user_attrs["resumed_epochs"] <= trained
    assert resumed.user_attrs["retries"] == 0, "a stop by SIGTERM is no failure"


@contextmanager
def stoppable_server() -> Iterator[tuple[str, Path]]:
    """A Postgres that a test may stop, and its folder."""
    folder = Path(tempfile.mkdtemp(prefix="acuity-own-"))
    folder.chmod(0o711)
    try:
        with embedded_server(folder) as url:
            yield url.render_as_string(hide_password=False), folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


@contextmanager
def held_down(folder: Path) -> Iterator[None]:
    """No user of the server may start it again during the block."""
    with (folder / "start.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def restart(folder: Path) -> None:
    with embedded_server(folder):
        pass


def test_worker_ends_within_ten_seconds_of_sigterm_while_the_database_hangs(make_fleet: Callable[..., Fleet]) -> None:
    with stoppable_server() as (url, folder):
        fleet = make_fleet(url, epochs="100")
        [worker] = fleet.start()
        mid_trial(fleet, 1)
        backends = subprocess.run(
            ["pgrep", "-P", str(postmaster(folder))], capture_output=True, text=True, check=True
        ).stdout.split()
        for process in backends:
            os.kill(int(process), signal.SIGSTOP)
        try:
            time.sleep(1)
            kill(worker, signal.SIGTERM)
            worker.join(timeout=10)
            assert worker.exitcode == 0, fleet.log()
        finally:
            for process in backends:
                os.kill(int(process), signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_training_continues_during_an_outage_and_no_report_is_lost(
    how: int, make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float]
) -> None:
    with stoppable_server() as (url, folder):
        fleet = make_fleet(url)
        workers = fleet.start(2)
        mid_trial(fleet, 2)
        with held_down(folder):
            os.kill(postmaster(folder), how)
            trained = fleet.epochs_trained()
            time.sleep(8)  # longer than the grace period
            assert fleet.epochs_trained() > trained
        restart(folder)
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0, fleet.log()
        assert "reports kept until the database is back" in fleet.log()
        check_budget(fleet, 4)
        assert fleet.count("true") == 8, "after an outage every heartbeat is old, but no trial was taken over"
        assert fleet.values() == quiet_values
        assert all(len(trial.intermediate_values) == EPOCHS for trial in fleet.trials())
        assert fleet.epochs_trained() == 8 * EPOCHS


def test_worker_exits_with_status_75_after_a_long_outage_and_keeps_its_checkpoint(
    make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float]
) -> None:
    with stoppable_server() as (url, folder):
        fleet = make_fleet(url, patience_min="0.03")
        [worker] = fleet.start()
        mid_trial(fleet, 1)
        with held_down(folder):
            os.kill(postmaster(folder), signal.SIGINT)
            worker.join(timeout=60)
        assert worker.exitcode == os.EX_TEMPFAIL, fleet.log()
        assert "waited 2 s, which is the limit. Bring it back and launch again" in fleet.log().splitlines()[-1]
        assert "Traceback" not in fleet.log()
        trained = fleet.epochs_trained()
        assert trained == EPOCHS, "it trained its trial to the end"
        restart(folder)
        fleet.run(1)
        check_budget(fleet, 4)
        assert fleet.values() == quiet_values
        assert fleet.epochs_trained() == 8 * EPOCHS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of 40 kB")
def test_full_disk_is_a_clear_error_and_no_trial_is_lost(
    make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float], database_url: str, tmp_path: Path
) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        fleet = make_fleet(database_url, checkpoints=str(tmp_path))
        [worker] = fleet.start()
        worker.join()
        assert worker.exitcode == 1, fleet.log()
        assert "(No space left on device): make room there" in fleet.log().splitlines()[-1]
        assert (fleet.count("requeued"), fleet.count("state = 'RUNNING'")) == (1, 0)
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        fleet.run(1)
        check_budget(fleet, 4)
        assert fleet.values() == quiet_values
    finally:
        for process in fleet.processes:
            process.join()
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("fault", ["deleted", "corrupt"])
def test_only_the_trial_of_a_lost_checkpoint_restarts_and_that_is_recorded(
    fault: str, make_fleet: Callable[..., Fleet], quiet_values: dict[Any, float], database_url: str
) -> None:
    fleet = make_fleet(database_url)
    [worker] = fleet.start()
    mid_trial(fleet, 1)
    kill(worker)
    worker.join()
    [checkpoint] = fleet.folder.rglob("*.ckpt")
    if fault == "deleted":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    before = fleet.epochs_trained()
    fleet.run(1)
    check_budget(fleet, 4)
    assert fleet.values() == quiet_values
    assert fleet.epochs_trained() == before + 8 * EPOCHS
    [restarted] = [trial for trial in fleet.trials() if trial.user_attrs["attempt"] == 2]
    assert restarted.user_attrs["resumed_epochs"] == 0
    kept = Counter(path.parent.name.split()[0] for path in fleet.folder.rglob("*.ckpt"))
    assert sorted(kept.values()) == [1, 1], "only the best checkpoint of each label and resolution is kept"


def test_trial_that_kills_its_workers_fails_with_the_reason_and_another_trial_replaces_it(
    make_fleet: Callable[..., Fleet], database_url: str
) -> None:
    fleet = make_fleet(database_url, max_retries="2", resolutions="[16, 32]", minimum="2")
    deadly = int.from_bytes(hashlib.sha256(b"0/tiny/Nodule/1").digest()[:4])
    fleet.run(2, deadly_seed=deadly)
    check_budget(fleet, 4)
    assert sum(process.exitcode == -signal.SIGKILL for process in fleet.processes) == 3
    failed = fleet.sql("select reason, origin from acuity.all_trials where state = 'FAIL' and not requeued")
    assert failed == [("given up: 3 workers died on it", 1)]
    complete = "select resolution from acuity.all_trials where state = 'COMPLETE' and label = 'Nodule'"
    assert Counter(fleet.sql(complete)) == {
        (16,): 2,
        (32,): 2,
    }
