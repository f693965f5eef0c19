"""Claim: under random faults every label ends with exactly its number of trials, and no trial is stuck.

Four real workers (`acuity worker`, forked from a process that has imported torch) search phantoms over an embedded
Postgres, in rounds. Every second or two a seeded generator causes a fault: a worker gets SIGKILL, SIGTERM, or SIGSTOP
for a time below or above the grace period; Postgres restarts, crashes or loses all connections; a checkpoint is deleted
or truncated. Workers that have ended are started again. There are two modes:

- fixed: every trial is enqueued with fixed parameters, without pruning. Its values must equal those of a run without
  faults, bit for bit;
- search: the sampler and the pruner choose.

Run: python benchmarks/validity/chaos.py [MINUTES] [fixed|search] [SEED]   (default: 15 minutes, half in each mode)
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from acuity.storage.embedded.server import embedded_server

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]
from result_line import make_goal, print_result

from support.worker_processes import count_epochs, fix_initial_trials, kill_processes

WORKERS = 4
LABELS = ("Cardiomegaly", "Nodule")
EPOCHS = 6
GRACE_S = 4
CHECKPOINT_S = 0.5  # of some 2 s of a trial, so that a checkpoint is often older than the last epoch
FAULTS = {"kill": 6, "terminate": 3, "stop": 4, "restart": 2, "crash": 2, "cut": 2, "checkpoint": 1}
EXPERIMENT = """
name = "chaos"
labels = {labels}
[data]
index = "{folder}/Data_Entry.csv"
images = "{folder}/images"
cache = "{folder}/cache"
[search]
resolutions = {resolutions}
architectures = ["test_resnet"]
trials = {trials}
min_complete_per_resolution = {minimum}
min_batch_size = 4
max_batch_size = 8
min_updates_per_epoch = 5
pruner = "{pruner}"
[training]
epochs = {epochs}
[workers]
memory_budget_gib = 2
heartbeat_s = 1
grace_s = {grace_s}
max_retries = 1000
checkpoints = "{checkpoints}"
checkpoint_s = {checkpoint_s}
"""
TRIALS = {"fixed": 9, "search": 15}
RESOLUTIONS = {"fixed": [32], "search": [16, 24, 32]}
MINIMUM = {"fixed": 9, "search": 3}

_processes = get_context("forkserver")


def main() -> None:
    """Run the modes, print a line for each round, and one line of JSON."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    modes = sys.argv[2:3] or ["fixed", "search"]
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    _processes.set_forkserver_preload(["acuity.study.worker.loop"])
    results = {}
    with tempfile.TemporaryDirectory() as images, tempfile.TemporaryDirectory(prefix="acuity-chaos-") as home:
        from acuity.objectives.phantoms.generator import write_phantoms

        write_phantoms(Path(images), images=240, size=64)
        Path(home).chmod(0o711)
        with embedded_server(Path(home)) as url:
            for mode in modes:
                results[mode] = _run_mode(mode, 60 * minutes / len(modes), seed, url, Path(images), Path(home))
    print_result(
        "chaos",
        n={mode: _totals(result["rounds"]) for mode, result in results.items()},
        goals=[goal for mode, result in results.items() for goal in _goals(mode, result["rounds"])],
        minutes=minutes,
        seed=seed,
        results=results,
    )


@dataclass(eq=False)
class Round:
    """One experiment with its workers, in its own database."""

    mode: str
    url: URL
    server: Path
    folder: Path
    generator: random.Random
    processes: list[BaseProcess] = field(default_factory=list)
    asleep: dict[int, float] = field(default_factory=dict)
    terminated: dict[int, float] = field(default_factory=dict)
    slowest_exit_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)

    def run(self, *, faults_until: float) -> None:
        """Run until every budget is finished; no fault after faults_until (seconds of the monotonic clock)."""
        next_fault = time.monotonic() + 3.0
        alive = [self._start() for _ in range(WORKERS)]
        finished = False
        while alive:
            time.sleep(0.05)
            self._wake(all_of_them=time.monotonic() > faults_until)
            for process in [process for process in alive if process.exitcode is not None]:
                alive.remove(process)
                finished |= self._has_finished(process)
                if not finished:
                    alive.append(self._start())
            if not finished and next_fault < time.monotonic() < faults_until:
                self._fault([process for process in alive if process.pid not in self.asleep])
                next_fault = time.monotonic() + self.generator.uniform(0.5, 2.5)

    def _start(self) -> BaseProcess:
        number = len(self.processes)
        process = _processes.Process(target=_work, args=(_text(self.url), str(self.folder), number), daemon=True)
        process.start()
        self.processes.append(process)
        return process

    def _has_finished(self, process: BaseProcess) -> bool:
        """True if the process ended because no trial was left."""
        assert process.pid is not None
        terminated_at = self.terminated.pop(process.pid, None)
        if terminated_at is not None and process.exitcode == 0:
            self.slowest_exit_s = max(self.slowest_exit_s, time.monotonic() - terminated_at)
            return False
        if process.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM, os.EX_TEMPFAIL):
            log = (self.folder / f"worker-{self.processes.index(process):03d}.log").read_text().splitlines()
            print("\n".join(["an unexpected exit:", *log[-200:]]), file=sys.stderr)
            self.unexpected.append(f"exit {process.exitcode}: {log[-1] if log else ''}")
        return process.exitcode == 0

    def _wake(self, *, all_of_them: bool) -> None:
        for pid, until in list(self.asleep.items()):
            if all_of_them or time.monotonic() > until:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                del self.asleep[pid]

    def _fault(self, awake: list[BaseProcess]) -> None:
        kind = self.generator.choices(list(FAULTS), weights=list(FAULTS.values()))[0]
        if kind in ("kill", "terminate", "stop"):
            awake = [process for process in awake if process.pid not in self.terminated]
            if not awake:
                return
            pid = self.generator.choice(awake).pid
            assert pid is not None
            with suppress(ProcessLookupError):
                if kind == "stop":
                    os.kill(pid, signal.SIGSTOP)
                    self.asleep[pid] = time.monotonic() + self.generator.uniform(1.0, 2.5 * GRACE_S)
                elif kind == "terminate":
                    os.kill(pid, signal.SIGTERM)
                    self.terminated[pid] = time.monotonic()
                else:
                    os.kill(pid, signal.SIGKILL)
        elif kind in ("restart", "crash"):
            postmaster = int((self.server / "data" / "postmaster.pid").read_text().split()[0])
            os.kill(postmaster, signal.SIGINT if kind == "restart" else signal.SIGQUIT)
            time.sleep(self.generator.uniform(0.0, 1.5 * GRACE_S))
            with embedded_server(self.server):
                pass
        elif kind == "cut":
            statement = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{self.url.database}'"
            with suppress(DBAPIError):
                _query(self.url.set(database="postgres"), statement)
        else:
            checkpoints = sorted((self.folder / "checkpoints").rglob("*.ckpt"))
            if not checkpoints:
                return
            with suppress(FileNotFoundError):
                checkpoint = self.generator.choice(checkpoints)
                if self.generator.random() < 0.5:
                    checkpoint.unlink()
                else:
                    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
        self.faults[kind] += 1

    def check(self) -> dict[str, Any]:
        """Count what the database holds at the end of the round."""
        rows = _query(
            self.url,
            "select label, state, coalesce(origin, number), value, requeued from acuity.all_trials order by trial_id",
        )
        finished = [row for row in rows if row[1] in ("COMPLETE", "PRUNED")]
        budgets = Counter(row[0] for row in finished)
        epochs = (self.folder / "epochs").stat().st_size
        reported = _query(
            self.url,
            "select count(*) from trial_intermediate_values i join trials t on t.trial_id = i.trial_id "
            "where t.state in ('COMPLETE', 'PRUNED')",
        )[0][0]
        return {
            "exact": budgets == dict.fromkeys(LABELS, TRIALS[self.mode]),
            "stuck": sum(row[1] in ("RUNNING", "WAITING") for row in rows),
            "told_twice": len(finished) - len({(row[0], row[2]) for row in finished}),
            "given_up": sum(row[1] == "FAIL" and not row[4] for row in rows),
            "requeued": sum(bool(row[4]) for row in rows),
            "finished": len(finished),
            "epochs_trained_again": epochs - reported,
            "epochs": reported,
            "values": {f"{label} {origin}": value for label, _, origin, value, _ in finished},
        }


def _work(url: str, folder: str, number: int) -> None:
    """Run a worker that counts the epochs it finishes."""
    from acuity.study.cli import main as cli

    os.environ["ACUITY_STORAGE"] = url
    log = os.open(f"{folder}/worker-{number:03d}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    count_epochs(f"{folder}/epochs", wait=False)
    sys.argv = ["acuity", "worker", "chaos", "--device", "cpu", "--workers", str(WORKERS), "--threads", "1"]
    cli.main()


def _run_mode(mode: str, seconds: float, seed: int, url: URL, images: Path, server: Path) -> dict[str, Any]:
    generator = random.Random(f"{mode} {seed}")
    quiet: dict[str, float] = {}
    if mode == "fixed":
        with _round(mode, "quiet", generator, url, images, server) as undisturbed:
            undisturbed.run(faults_until=0.0)
            quiet = undisturbed.check()["values"]
            assert len(quiet) == len(LABELS) * TRIALS[mode]
    rounds = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with _round(mode, f"{mode}_{len(rounds)}", generator, url, images, server) as chaos:
            chaos.run(faults_until=until)
            checked = chaos.check()
            values = checked.pop("values")
            checked |= {
                "equal": values == quiet if mode == "fixed" else None,
                "faults": dict(chaos.faults),
                "slowest_exit_s": round(chaos.slowest_exit_s, 1),
                "unexpected": chaos.unexpected,
            }
            rounds.append(checked)
            print(f"{mode} round {len(rounds)}: {json.dumps(checked)}", flush=True)
    return {"seconds": seconds, "rounds": rounds}


@contextmanager
def _round(mode: str, name: str, generator: random.Random, url: URL, images: Path, server: Path) -> Iterator[Round]:
    with tempfile.TemporaryDirectory() as folder:
        _query(url.set(database="postgres"), f"create database {name}")
        this = Round(mode, url.set(database=name), server, Path(folder), generator)
        (this.folder / "epochs").touch()
        _register(this, images)
        try:
            yield this
        finally:
            kill_processes(this.processes)


def _register(this: Round, images: Path) -> None:
    from acuity.storage.database import open_storage
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import open_image_set, training_images
    from acuity.study.registry.register import register

    file = this.folder / "chaos.toml"
    file.write_text(
        EXPERIMENT.format(
            labels=json.dumps(LABELS),
            folder=images,
            trials=TRIALS[this.mode],
            resolutions=RESOLUTIONS[this.mode],
            minimum=MINIMUM[this.mode],
            pruner="none" if this.mode == "fixed" else "median",
            epochs=EPOCHS,
            grace_s=GRACE_S,
            checkpoints=this.folder / "checkpoints",
            checkpoint_s=CHECKPOINT_S,
        )
    )
    experiment = load(file)
    image_set = open_image_set(experiment)
    with open_storage(_text(this.url)) as database:
        registered = register(
            database,
            experiment,
            image_set.identity,
            training_images=training_images(image_set, experiment.labels),
        )
        if this.mode == "fixed":
            fix_initial_trials(database, registered)


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _query(url: URL, statement: str) -> list[Any]:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(statement))
        return list(result.all()) if result.returns_rows else []


def _totals(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rounds": len(rounds),
        "trials": _total(rounds, "finished"),
        "requeued": _total(rounds, "requeued"),
        "faults": dict(sum((Counter(round_["faults"]) for round_ in rounds), Counter())),
    }


def _goals(mode: str, rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    goals = []

    def require(name: str, value: float, sign: str, bound: float) -> None:
        met = value == bound if sign == "==" else value <= bound
        goals.append(make_goal(f"{mode}_{name}", value, f"{sign} {bound}", met=met))

    require("rounds_with_exact_budgets", _total(rounds, "exact"), "==", len(rounds))
    for key in ("stuck", "told_twice", "given_up"):
        require(key, _total(rounds, key), "==", 0)
    if mode == "fixed":
        require("rounds_with_equal_values", _total(rounds, "equal"), "==", len(rounds))
    require("unexpected_exits", sum(len(round_["unexpected"]) for round_ in rounds), "==", 0)
    require("slowest_exit_after_sigterm_s", max(round_["slowest_exit_s"] for round_ in rounds), "<=", 10)
    return goals


def _total(rounds: list[dict[str, Any]], key: str) -> int:
    return sum(round_[key] for round_ in rounds)


if __name__ == "__main__":
    main()
