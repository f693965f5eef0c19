"""Claim: exact budgets, heartbeats and resumable trials cost no more than plain Optuna, and under 1 % of a 60 s trial.

The overhead of a trial is the time that a worker spends between trainings and on its reports: the time between the
starts of two trainings, less the epochs (10 of 1 s, in which the worker sleeps). The Postgres is the embedded one, with
fsync on. The study holds 100, 1,000 or 10,000 trials. With 1, 4 and 16 workers, in turn, these are measured:

- acuity: the real worker, from claim to tell, with its 20 attributes per trial;
- Optuna: `study.optimize` with its defaults on the same trials, four parameters, two attributes, reports and pruning.

A worker's first trial reads the whole study and is left out. CPU times are those of the workers and of Postgres.
`acuity status` and `acuity best` are timed over 14 labels of the largest size.

Run: python benchmarks/speed/storage_cost.py [LARGEST]   (15 minutes on two cores; LARGEST = 1000: 10 minutes)
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import URL, text

from acuity.storage.database import Database, open_storage
from acuity.storage.embedded.server import embedded_server
from acuity.storage.studies import create_study

sys.path.append(str(Path(__file__).parents[1]))
from child_process import cpu_with_children
from filled_studies import ARCHITECTURES, RESOLUTIONS, administer, fill_study, register_filled, url_text, vacuum
from result_line import make_goal, print_result

LABELS = ("Cardiomegaly", "Nodule", "Fibrosis")
SIZES = (100, 1_000, 10_000)
WORKERS = (1, 4, 16)
EPOCHS, EPOCH_S = 10, 1.0
TRIALS = 2  # measured trials per worker

_processes = get_context("forkserver")


def main() -> None:
    """Fill the studies, run every cell in turn, print the table and one line of JSON."""
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    _processes.set_forkserver_preload(["acuity.study.worker.loop"])
    sizes = [size for size in SIZES if size <= largest]
    with _server() as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_images(folder)
        for size in sizes:
            administer(url, f"create database full_{size}")
            register_filled(url.set(database=f"full_{size}"), folder, labels=LABELS[:1], size=size, epochs=EPOCHS)
        cells = []
        print(f"{'trials':>7} {'workers':>8} {'':>8} {'ms a trial':>11} {'client CPU ms':>14} {'server CPU ms':>14}")
        for size in sizes:
            for workers in WORKERS:
                for arm in ("acuity", "optuna"):
                    cell = _run_cell(url, folder, arm, size=size, workers=workers)
                    cells.append(cell)
                    print(
                        f"{size:>7,} {workers:>8} {arm:>8} {cell['ms']:>11.0f} {cell['client_cpu_ms']:>14.0f} "
                        f"{cell['server_cpu_ms']:>14.0f}",
                        flush=True,
                    )
        answers = _time_answers(url, largest)
    for command, seconds in answers.items():
        print(f"acuity {command} over 14 labels of {largest:,} trials: {seconds:.2f} s")
    print_result(
        "storage_cost",
        n=TRIALS,
        goals=_goals(cells, answers, largest),
        versions={"optuna": optuna.__version__, "python": platform.python_version()},
        cells=cells,
    )


@contextmanager
def _server() -> Iterator[URL]:
    """Start an embedded Postgres with a user's settings, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="acuity-bench-") as folder:
        Path(folder).chmod(0o711)
        with embedded_server(Path(folder)) as url:
            yield url


def _make_images(folder: Path) -> None:
    """Write a few images. Nothing is trained on them."""
    from acuity.objectives.phantoms.generator import write_phantoms

    write_phantoms(folder, images=300, size=128)


def _run_cell(url: URL, folder: Path, arm: str, *, size: int, workers: int) -> dict[str, Any]:
    """Overhead and CPU time of a trial, for a number of workers on a copy of a study of this size."""
    administer(url, "drop database if exists cell with (force)")
    administer(url, f"create database cell template full_{size}")
    # The user is named acuity, so that plain Optuna would look for its tables in the schema acuity.
    administer(url, "alter database cell set search_path = public")
    cell = url_text(url.set(database="cell"))
    home = Path(tempfile.mkdtemp(dir=folder))
    run = _acuity_worker if arm == "acuity" else _optuna_worker
    processes = [
        # Starts are spread over the length of a trial, as they would be later in a search.
        _processes.Process(target=run, args=(cell, str(home), number, EPOCHS * EPOCH_S * number / workers))
        for number in range(workers)
    ]
    with _server_cpu(url) as samples:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0, f"see {home}/log"
    marks = [json.loads(path.read_text()) for path in home.glob("*.json")]
    assert len(marks) == workers
    overheads = [
        1000 * (after[0] - before[0] - EPOCHS * EPOCH_S) for worker in marks for before, after in pairwise(worker[1:])
    ]
    cpu = [1000 * (after[1] - before[1]) for worker in marks for before, after in pairwise(worker[1:])]
    begin, end = statistics.median(worker[1][0] for worker in marks), statistics.median(w[-1][0] for w in marks)
    cpu_at = [min(samples, key=lambda sample, at=at: abs(sample[0] - at))[1] for at in (begin, end)]
    return {
        "arm": arm,
        "trials": size,
        "workers": workers,
        "ms": round(statistics.median(overheads), 1),
        "ms_low": round(min(overheads), 1),
        "ms_high": round(max(overheads), 1),
        "client_cpu_ms": round(statistics.mean(cpu), 1),
        "server_cpu_ms": round(1000 * (cpu_at[1] - cpu_at[0]) / (workers * TRIALS), 1),
    }


class _Marks:
    """The start of each training: wall clock and CPU time of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks: list[list[float]] = []

    def begin(self) -> bool:
        """Record the start of a training. False if enough trials are measured; the file is then written."""
        self.marks.append([time.time(), time.process_time()])
        if len(self.marks) < TRIALS + 2:
            return True
        self.path.write_text(json.dumps(self.marks))
        return False


def _acuity_worker(url: str, home: str, number: int, wait_s: float) -> None:
    """Run the real worker; its training sleeps."""
    import numpy as np

    from acuity.objectives.training.interface import Outcome
    from acuity.study.cli import main as cli
    from acuity.study.worker import training as claimed_training

    os.environ |= {"ACUITY_STORAGE": url, "HOME": home, "XDG_CACHE_HOME": home}
    log = os.open(f"{home}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    marks = _Marks(Path(home) / f"{number}.json")

    def train(*_: Any, report: Any, **__: Any) -> Outcome:
        if not marks.begin():
            sys.stderr.flush()
            os._exit(0)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(EPOCH_S)
            report(epoch, 0.95 + 0.001 * epoch)
        return Outcome(0.9, 0.01, 0.8, 0.5, EPOCHS, 10.0, 100.0, 1.0, False, np.zeros(1))

    claimed_training.train = train
    time.sleep(wait_s)
    sys.argv = ["acuity", "worker", "bench", "--device", "cpu", "--threads", "1"]
    cli.main()


def _optuna_worker(url: str, home: str, number: int, wait_s: float) -> None:
    """Run plain Optuna with its defaults."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    marks = _Marks(Path(home) / f"{number}.json")

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("resolution", RESOLUTIONS)
        trial.suggest_categorical("architecture", ARCHITECTURES)
        trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        trial.suggest_int("batch_size_exponent", 2, 3)
        if not marks.begin():
            os._exit(0)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(EPOCH_S)
            trial.report(0.95 + 0.001 * epoch, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("batch_size", 8)
        trial.set_user_attr("device", "CPU")
        return 0.9

    study = optuna.load_study(study_name=f"bench/{LABELS[0]}", storage=url)
    time.sleep(wait_s)
    study.optimize(objective)


@contextmanager
def _server_cpu(url: URL) -> Iterator[list[tuple[float, float]]]:
    """Sample (time, CPU seconds of all Postgres processes since their start) while the block runs."""
    folder = Path(str(url.query["host"]))
    postmaster = int((folder / "postmaster.pid").read_text().split()[0])
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            samples.append((time.time(), cpu_with_children(postmaster)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _time_answers(url: URL, size: int) -> dict[str, float]:
    """Median seconds of five reads of `acuity status` and `acuity best`, over 14 labels of this many trials."""
    from acuity.study.registry.progress import read_progress
    from acuity.study.registry.record import read_registered
    from acuity.study.results.answer import read_answer
    from acuity.study.results.status import read_running_trials

    administer(url, "drop database if exists cell with (force)")
    administer(url, f"create database cell template full_{size}")
    with open_storage(url_text(url.set(database="cell"))) as database:
        labels = _widen(database, size)

        def status() -> None:
            experiment = read_registered(database, "bench").experiment
            assert sum(entry.finished for entry in read_progress(database, experiment)) == size * len(labels)
            read_running_trials(database, experiment)

        def best() -> None:
            assert all(entry.best for entry in read_answer(database, "bench").labels)

        return {"status": _median_s(status), "best": _median_s(best)}


def _widen(database: Database, size: int) -> list[str]:
    """Extend the experiment to 14 labels; each study is as full as the first."""
    labels = [LABELS[0], *(f"Finding {number}" for number in range(2, 15))]
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "update acuity.experiments set definition = "
                "jsonb_set(definition, '{experiment,labels}', cast(:labels as jsonb))"
            ),
            {"labels": json.dumps(labels)},
        )
    for label in labels[1:]:
        study = create_study(database, f"bench/{label}", experiment="bench", label=label, confirm=False)
        fill_study(database.engine, study._study_id, size, epochs=EPOCHS)
    vacuum(database)
    return labels


def _median_s(function: Any) -> float:
    times = []
    for _ in range(6):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return round(statistics.median(times[1:]), 3)


def _goals(cells: list[dict[str, Any]], answers: dict[str, float], largest: int) -> list[dict[str, Any]]:
    at = {(cell["arm"], cell["trials"], cell["workers"]): cell for cell in cells}
    goals = []
    for arm, size, workers in at:
        if arm == "acuity":
            ours, plain_ms = at[arm, size, workers], at["optuna", size, workers]["ms"]
            goals.append(
                make_goal(
                    f"overhead_ms_{size}_trials_{workers}_workers",
                    ours["ms"],
                    f"<= {plain_ms} (plain Optuna) and < 600 (1 % of a 60 s trial)",
                    met=ours["ms"] <= plain_ms and ours["ms"] < 600,
                    low=ours["ms_low"],
                    high=ours["ms_high"],
                )
            )
    for command, seconds in answers.items():
        goals.append(make_goal(f"{command}_s_14x{largest}", seconds, "< 1", met=seconds < 1))
    return goals


if __name__ == "__main__":
    main()
