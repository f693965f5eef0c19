"""Claim: one Postgres carries 1,000 workers with exact budgets, at less than half of plain Optuna's statements a trial.

Simulated workers share 14 labels: threads of a few processes that run the real worker, from claim to tell, with its
heartbeats and reports. A training is 10 epochs of sleep. The sampler reads what TPE reads and draws at random, in both
arms: TPE's arithmetic is the client's. Workers begin in the middle of a trial, so that claims are spread as in a long
search. A window of 40 s is measured. The clock of a small fleet runs faster (`clock`): epochs, heartbeats and grace
periods are shorter by this factor, so that the window holds enough trials.

- acuity: `run_trials`; at the end of a cell the budgets are set a few trials above what runs, all workers hurry, and
  each label must end with exactly its budget;
- optuna: `study.optimize` with RDBStorage and heartbeats as its documentation advises, one study a worker, the same
  parameters, reports, pruning and two attributes.

The Postgres is Debian's 15 with fsync on and pg_stat_statements. PgBouncer is Debian's, in transaction mode.
Statements count begin and commit. Bytes are those of the sockets. CPU times are of all processes of Postgres, and of
the simulated workers' processes, which share the cores.

The kept run shows 256 workers, not 1,000. It has the cells 16/5/100 and 256/60/100 of both arms, at a load of 24.

Run: python benchmarks/speed/fleet_scale.py [FILE]      all cells (40 minutes); a line of JSON for each to FILE
     python benchmarks/speed/fleet_scale.py FILE CELL…  cells such as acuity/64/5/100 or optuna/1000/60/100/pgbouncer
     python benchmarks/speed/fleet_scale.py result FILE the result of the cells in FILE
     python benchmarks/speed/fleet_scale.py profile     the statements of a trial by kind, in both arms
"""

import copy
import json
import os
import platform
import random
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from sqlalchemy import URL, NullPool, create_engine, text

from acuity.storage.database import Database, open_storage
from acuity.storage.embedded.account import process_user, server_account

sys.path.append(str(Path(__file__).parents[1]))
from child_process import cpu_with_children
from filled_studies import ARCHITECTURES, RESOLUTIONS, administer, register_filled, url_text, write_labelled_phantoms
from result_line import make_goal, print_result

LABELS = tuple(f"Finding {number}" for number in range(1, 15))
EPOCHS = 10
HEARTBEAT_S, GRACE_S = 30, 180
OPTUNA_HEARTBEAT_S, OPTUNA_GRACE_S = 60, 120  # those of its documentation's example
WINDOW_S, PROFILE_WORKERS = 40.0, 16
MORE_TRIALS = 3  # of each label, above those that run at the end of a window
POOL = 20

_processes = get_context("forkserver")


@dataclass(frozen=True)
class Cell:
    """One measurement. size: finished trials of each label at its start; 0 leaves the initial trials waiting."""

    arm: str
    workers: int
    epoch_s: int
    size: int
    pgbouncer: bool = False

    @property
    def clock(self) -> int:
        """Factor by which the clock runs faster."""
        return max(1, round(self.epoch_s * EPOCHS / WINDOW_S * 64 / self.workers))


def main() -> None:
    """Run the cells that the command line names."""
    arguments = sys.argv[1:]
    _processes.set_forkserver_preload(["acuity.study.worker.loop", "optuna"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if arguments[:1] == ["result"]:
        _print_result([json.loads(line) for line in Path(arguments[1]).read_text().splitlines()])
        return
    if arguments == ["profile"]:
        with _Server() as server:
            for arm in ("acuity", "optuna"):
                figures = server.run(Cell(arm, PROFILE_WORKERS, 5, 100))
                kinds = figures.pop("kinds")
                print(json.dumps(figures))
                print(f"{arm}: {sum(kinds.values()):.1f} statements a trial")
                for kind, count in sorted(kinds.items(), key=lambda item: -item[1])[:40]:
                    print(f"{count:>8.2f}  {kind}")
        return
    file = Path(arguments[0]) if arguments else Path(tempfile.mkstemp(prefix="fleet_scale_", suffix=".jsonl")[1])
    cells = [_parse_cell(argument) for argument in arguments[1:]] or list(_all_cells())
    with _Server() as server:
        for cell in cells:
            figures = asdict(cell) | {"clock": cell.clock} | server.run(cell)
            del figures["kinds"]
            with file.open("a") as lines:
                lines.write(json.dumps(figures) + "\n")
            print(json.dumps(figures), flush=True)
    if len(arguments) < 2:
        _print_result([json.loads(line) for line in file.read_text().splitlines()])


def _all_cells() -> Iterator[Cell]:
    arms = ("acuity", "optuna")
    for size in (1_000, 10_000):
        yield from (Cell(arm, 16, 5, size) for arm in arms)
    for workers in (16, 64, 256, 1_000):
        yield from (Cell(arm, workers, epoch_s, 100) for epoch_s in (60, 5) for arm in arms)
    yield from (Cell(arm, workers, 60, 100, pgbouncer=True) for workers in (64, 1_000) for arm in arms)
    yield from (Cell("acuity", workers, 5, 100, pgbouncer=True) for workers in (64, 1_000))
    yield Cell("acuity", 64, 5, 0)


def _parse_cell(text: str) -> Cell:
    arm, workers, epoch_s, size, *pgbouncer = text.split("/")
    return Cell(arm, int(workers), int(epoch_s), int(size), bool(pgbouncer))


class _Server:
    """A Postgres and a PgBouncer before it, in a temporary folder, and the databases of the cells."""

    def __enter__(self) -> "_Server":
        self.folder = Path(tempfile.mkdtemp(prefix="acuity-bench-"))
        self.folder.chmod(0o755)
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.account = process_user(server_account())
        data, password = self.folder / "data", secrets.token_hex(8)
        self.server_folder = self.folder / "server"
        self.server_folder.mkdir()
        if self.account:
            shutil.chown(self.server_folder, self.account["user"], self.account["group"])
        data = self.server_folder / "data"
        (self.folder / "password").write_text(password)
        (self.folder / "password").chmod(0o644)
        self._call(
            "initdb",
            "-D",
            data,
            "-U",
            "acuity",
            "-A",
            "scram-sha-256",
            "--pwfile",
            self.folder / "password",
            "-E",
            "UTF8",
        )
        self.port, self.pooled_port = _free_port(), _free_port()
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.server_folder,
            "max_connections": 1_500, "shared_buffers": "512MB", "shared_preload_libraries": "pg_stat_statements",
            "pg_stat_statements.max": 50_000, "max_wal_size": "8GB",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.log = (self.folder / "log").open("w")
        self.postmaster = subprocess.Popen(
            [self.programs / "postgres", "-D", data, *map(str, options)],
            stdout=self.log, stderr=self.log, cwd="/", **self.account,
        )  # fmt: skip
        self.url = URL.create("postgresql+psycopg2", "acuity", password, "127.0.0.1", self.port, "postgres")
        _wait(lambda: administer(self.url, "create extension pg_stat_statements"))
        self.bouncer = self._start_pgbouncer(password)
        self._templates: set[str] = set()
        write_labelled_phantoms(self.folder, LABELS)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.bouncer, self.postmaster):
            process.send_signal(2)
            process.wait()
        shutil.rmtree(self.folder)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Run a cell on a new database; returns its figures."""
        template = self._template(cell)
        administer(self.url, "drop database if exists cell with (force)")
        administer(self.url, f"create database cell template {template}")
        # The user is named acuity, so that plain Optuna would look for its tables in the schema acuity.
        administer(self.url, "alter database cell set search_path = public")
        administer(self.url, "checkpoint")
        url = self.url.set(database="cell", port=self.pooled_port if cell.pgbouncer else self.port)
        home = Path(tempfile.mkdtemp(dir=self.folder))
        fleet = _Fleet(cell, url_text(url), str(home))
        try:
            fleet.start()
            time.sleep(2)
            before = self._sample(cell)
            fleet.window[0] = time.monotonic()
            time.sleep(WINDOW_S)
            fleet.window[1] = time.monotonic()
            after = self._sample(cell)
            exact = self._finish(fleet) if cell.arm == "acuity" else None
        finally:
            fleet.end()
        latencies = fleet.latencies()
        trials = len(latencies["tell"])
        change = {key: after[key] - before[key] for key in before if key != "kinds"}
        kinds = {
            kind: (count - before["kinds"].get(kind, 0)) / trials
            for kind, count in after["kinds"].items()
            if count > before["kinds"].get(kind, 0)
        }
        return {
            "trials_in_window": trials,
            "claims_per_s": round(len(latencies["claim"]) / WINDOW_S, 2),
            **{
                f"{call}_ms_{name}": round(1000 * _quantile(latencies[call], share), 1)
                for call in ("claim", "report", "tell")
                for name, share in (("p50", 0.5), ("p99", 0.99))
            },
            "statements": round(change["statements"] / trials, 1),
            "commits": round(change["transactions"] / trials, 1),
            "kib": round(change["bytes"] / trials / 1024, 1),
            "wal_kib": round(change["wal"] / trials / 1024, 1),
            "server_cpu_ms": round(1000 * change["server_cpu"] / trials, 1),
            "server_cpu_cores": round(change["server_cpu"] / WINDOW_S, 3),
            "pgbouncer_cpu_cores": round(change["pgbouncer_cpu"] / WINDOW_S, 3),
            "client_cpu_cores": round(fleet.client_cpu() / WINDOW_S, 3),
            "connections": after["connections"],
            "connections_of_clients": after["clients"],
            "exact": exact,
            "kinds": kinds,
        }  # fmt: skip

    def _template(self, cell: Cell) -> str:
        heartbeat_s, grace_s = max(1, round(HEARTBEAT_S / cell.clock)), max(2, round(GRACE_S / cell.clock))
        name = f"full_{cell.size}_{heartbeat_s}"
        if name not in self._templates:
            administer(self.url, f"create database {name}")
            workers = f"heartbeat_s = {heartbeat_s}\ngrace_s = {grace_s}\n"
            url = self.url.set(database=name)
            register_filled(url, self.folder, labels=LABELS, size=cell.size, epochs=EPOCHS, workers=workers)
            self._templates.add(name)
        return name

    def _finish(self, fleet: "_Fleet") -> bool:
        """Set the budgets a little above what has begun, hurry all workers; whether all labels end exactly there."""
        count = text(
            "select s.study_name, count(*) filter (where state in ('COMPLETE', 'PRUNED')), "
            "count(*) filter (where state = 'RUNNING'), count(*) filter (where state = 'WAITING') "
            "from public.studies s join public.trials t using (study_id) group by 1"
        )
        engine = create_engine(self.url.set(database="cell"), poolclass=NullPool)
        with engine.begin() as connection:
            budget = max(finished + running for _, finished, running, _ in connection.execute(count)) + MORE_TRIALS
            connection.execute(
                text(
                    "update acuity.experiments set definition = "
                    "jsonb_set(definition, '{experiment,search,trials}', to_jsonb(cast(:budget as integer)))"
                ),
                {"budget": budget},
            )
        fleet.hurry()
        with engine.connect() as connection:
            rows = connection.execute(count).all()
        return len(rows) == len(LABELS) and all(tuple(row[1:3]) == (budget, 0) for row in rows)

    def _sample(self, cell: Cell) -> dict[str, Any]:
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.connect() as connection:
            statements = connection.execute(
                text(
                    "select query, calls from pg_stat_statements join pg_database on oid = dbid where datname = 'cell'"
                )
            ).all()
            transactions, wal, connections = connection.execute(
                text(
                    "select (select xact_commit + xact_rollback from pg_stat_database where datname = 'cell'), "
                    "pg_current_wal_lsn() - '0/0'::pg_lsn, "
                    "(select count(*) from pg_stat_activity where datname = 'cell')"
                )
            ).one()
        kinds: dict[str, int] = defaultdict(int)
        for statement, calls in statements:
            kinds[_kind(statement)] += calls
        port = self.pooled_port if cell.pgbouncer else self.port
        clients, sent = _socket_bytes(port)
        return {
            "kinds": kinds,
            "statements": sum(kinds.values()),
            "transactions": int(transactions),
            "wal": int(wal),
            "bytes": sent,
            "connections": int(connections),
            "clients": clients,
            "server_cpu": cpu_with_children(self.postmaster.pid),
            "pgbouncer_cpu": cpu_with_children(self.bouncer.pid),
        }

    def _start_pgbouncer(self, password: str) -> "subprocess.Popen[bytes]":
        users, settings = self.folder / "users", self.folder / "pgbouncer.ini"
        users.write_text(f'"acuity" "{password}"\n')
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={self.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.pooled_port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = 5000\n"
        )
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
        assert program is not None, "apt-get install pgbouncer"
        return subprocess.Popen([program, settings], stdout=self.log, stderr=self.log, cwd="/", **self.account)

    def _call(self, program: str, *arguments: object) -> None:
        command = [self.programs / program, *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.account)


class _Fleet:
    """The processes of simulated workers."""

    def __init__(self, cell: Cell, url: str, home: str) -> None:
        count = 1 if cell.workers <= 16 else 4
        self.home, self.cell = Path(home), cell
        self.window = [0.0, 0.0]
        self.begun = _processes.Value("i", 0)
        self.pace = _processes.Value("d", cell.epoch_s / cell.clock)
        self.done = _processes.Event()
        self.processes = [
            _processes.Process(
                target=_run_workers, args=(cell, url, home, number, count, self.begun, self.pace, self.done)
            )
            for number in range(count)
        ]

    def start(self) -> None:
        """Start the workers; return once each is in its first trial."""
        for process in self.processes:
            process.start()
        _wait(lambda: self._all_begun(), timeout_s=600)

    def _all_begun(self) -> None:
        if not all(process.is_alive() for process in self.processes):
            raise SystemExit(f"a process ended: {(self.home / 'log').read_text()[-2000:]}")
        assert self.begun.value >= self.cell.workers

    def hurry(self) -> None:
        """End the sleeping, and wait until no worker has anything to do."""
        self.pace.value = 0.0
        for process in self.processes:
            process.join(timeout=900)
            assert process.exitcode == 0, f"{process.exitcode}: {(self.home / 'log').read_text()[-2000:]}"

    def end(self) -> None:
        """End the workers that still run, as those of plain Optuna do."""
        self.done.set()
        for process in self.processes:
            process.join(timeout=60)
            if process.is_alive():
                process.kill()
                process.join()

    def latencies(self) -> dict[str, list[float]]:
        """Seconds of the calls that ended within the window."""
        found: dict[str, list[float]] = {"claim": [], "report": [], "tell": []}
        for path in self.home.glob("*.json"):
            for kind, ended, seconds in json.loads(path.read_text())["calls"]:
                if self.window[0] <= ended <= self.window[1]:
                    found[kind].append(seconds)
        return found

    def client_cpu(self) -> float:
        """CPU seconds of the workers' processes within the window."""
        total = 0.0
        for path in self.home.glob("*.json"):
            samples = json.loads(path.read_text())["cpu"]
            low, high = (min(samples, key=lambda sample, at=at: abs(sample[0] - at))[1] for at in self.window)
            total += high - low
        return total


class _Calls:
    """Latencies of the calls of a process's workers, and its CPU time."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float]] = []
        self.cpu: list[tuple[float, float]] = []

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with each call that returns something recorded."""

        @wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.monotonic()
            result = function(*arguments, **keywords)
            if kind != "claim" or result is not None:
                self.calls.append((kind, time.monotonic(), time.monotonic() - began))
            return result

        return call

    def sample_cpu(self, done: threading.Event) -> None:
        while not done.wait(0.5):
            self.cpu.append((time.monotonic(), time.process_time()))


def _run_workers(
    cell: Cell, url: str, home: str, number: int, processes: int, begun: Any, pace: Any, done: Any
) -> None:
    """Run this process's share of the workers; write their latencies at the end."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.environ |= {"ACUITY_STORAGE": url, "HOME": home, "XDG_CACHE_HOME": home, "TQDM_DISABLE": "1"}
    log = os.open(f"{home}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.dup2(log, 1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    threading.stack_size(512 * 1024)
    calls, ended = _Calls(), threading.Event()
    threading.Thread(target=calls.sample_cpu, args=(ended,), daemon=True).start()
    first: set[int] = set()

    def sleep_through(report: Callable[[int], bool]) -> None:
        """Sleep through the epochs of a training until report returns True; the first begins somewhere within it."""
        begin = 0
        if threading.get_ident() not in first:
            first.add(threading.get_ident())
            with begun.get_lock():
                begun.value += 1
            begin = random.randrange(EPOCHS)
            _sleep(random.random(), pace, done)
        for epoch in range(begin + 1, EPOCHS + 1):
            _sleep(1.0, pace, done)
            if done.is_set() and cell.arm == "optuna":
                return
            if report(epoch):
                return

    run = _acuity_workers if cell.arm == "acuity" else _optuna_workers
    workers = run(calls, url, sleep_through, done)
    opening = threading.Semaphore(4)
    threads = [
        threading.Thread(target=workers, args=(worker, opening)) for worker in range(number, cell.workers, processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        if cell.arm == "optuna":
            done.wait()
        else:
            thread.join()
    ended.set()
    (Path(home) / f"{number}.json").write_text(json.dumps({"calls": calls.calls, "cpu": calls.cpu}))
    os._exit(0)


def _sleep(epochs: float, pace: Any, done: Any) -> None:
    """Sleep through epochs; short naps, since the pace changes."""
    end = time.monotonic() + epochs * pace.value
    while pace.value and not done.is_set() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 2.0))


class ReadingSampler(RandomSampler):
    """Reads what TPE reads for a trial, and draws at random."""

    def infer_relative_search_space(self, study: optuna.Study, _: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """Read the study once, as TPE's search space does."""
        study._get_trials(deepcopy=False, use_cache=True)
        return {}


def _acuity_workers(calls: _Calls, url: str, sleep_through: Callable[..., None], _: Any) -> Callable[..., None]:
    """The function of a simulated worker: the real one, with a sleep for the training."""
    import numpy as np

    from acuity.objectives.device.device import open_device
    from acuity.objectives.training.interface import Outcome
    from acuity.study.dataset.image_set import open_image_set
    from acuity.study.registry.claims import open_studies
    from acuity.study.registry.record import checkpoints_of, read_registered
    from acuity.study.worker import attempt, loop, reporter, training
    from acuity.study.worker.context import WorkerContext
    from acuity.study.worker.heartbeat import DatabaseContact

    def train(*_: Any, report: Any, **__: Any) -> Outcome:
        sleep_through(lambda epoch: bool(report(epoch, 0.95 + 0.001 * epoch)))
        return Outcome(0.9, 0.01, 0.8, 0.5, EPOCHS, 10.0, 100.0, 1.0, False, np.zeros(1))

    training.train = train
    loop._GROWTH_BYTES = 2**50  # the process holds many workers
    loop._claim = calls.timed("claim", loop._claim)
    attempt._tell = calls.timed("tell", attempt._tell)
    reporter.Reporter.__call__ = calls.timed("report", reporter.Reporter.__call__)  # type: ignore[method-assign]
    with open_storage(url) as database:
        registered = read_registered(database, "bench")
        image_set = open_image_set(registered.experiment)
        opened = open_studies(database, registered, sampler_seed=0)
    workers = registered.experiment.workers
    device = open_device("cpu", workers=1, threads=1, memory_budget_gib=workers.memory_budget_gib)

    def work(number: int, opening: threading.Semaphore) -> None:
        opening.acquire()
        with open_storage(url) as database:
            context = WorkerContext(
                database=database,
                registered=registered,
                studies={label: _same_study(study, database, seed=number) for label, study in opened.items()},
                image_set=image_set,
                device=device,
                checkpoints=checkpoints_of(registered),
                contact=DatabaseContact(longest_gap_s=workers.grace_s / 2),
                stop=threading.Event(),
            )
            opening.release()
            loop.run_trials(context)

    return work


def _same_study(study: optuna.Study, database: Database, *, seed: int) -> optuna.Study:
    """The study on a worker's own storage. A thousand workers that each load 14 studies take minutes to start here."""
    own = copy.copy(study)
    own._storage, own.sampler = database.storage, ReadingSampler(seed)
    return own


def _optuna_workers(calls: _Calls, url: str, sleep_through: Callable[..., None], done: Any) -> Callable[..., None]:
    """The function of a worker of plain Optuna: `study.optimize` on one of the studies."""
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from optuna.study import _optimize

    optuna.Study.ask = calls.timed("claim", optuna.Study.ask)  # type: ignore[method-assign]
    _optimize._tell_with_warning = calls.timed("tell", _optimize._tell_with_warning)

    def report(trial: optuna.Trial, epoch: int) -> bool:
        trial.report(0.95 + 0.001 * epoch, epoch)
        return trial.should_prune()

    timed_report = calls.timed("report", report)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("resolution", RESOLUTIONS)
        trial.suggest_categorical("architecture", ARCHITECTURES)
        trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        trial.suggest_int("batch_size_exponent", 2, 3)
        sleep_through(lambda epoch: bool(timed_report(trial, epoch)))
        trial.set_user_attr("batch_size", 8)
        trial.set_user_attr("device", "CPU")
        return 0.9

    def work(number: int, opening: threading.Semaphore) -> None:
        with opening:
            storage = RDBStorage(
                url,
                heartbeat_interval=OPTUNA_HEARTBEAT_S,
                grace_period=OPTUNA_GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
            )
            study = optuna.load_study(
                study_name=f"bench/{LABELS[number % len(LABELS)]}", storage=storage, sampler=ReadingSampler(number)
            )
        study.optimize(objective, callbacks=[lambda study, _: study.stop() if done.is_set() else None])

    return work


def _socket_bytes(port: int) -> tuple[int, int]:
    """Number of connections to a port of this host, and the bytes that have gone over them in both directions."""
    shown = subprocess.run(
        ["ss", "-tinH", "state", "established", f"( dport = :{port} )"], capture_output=True, text=True, check=True
    ).stdout
    received = re.findall(r"bytes_(?:sent|received):(\d+)", shown)
    return len(re.findall(r"^\S", shown, re.MULTILINE)), sum(map(int, received))


def _kind(statement: str) -> str:
    """A statement's verb and tables."""
    words = " ".join(statement.split()).lower()
    writes = re.findall(r"(insert into|update|delete from) (?:public\.|acuity\.)?(\w+)", words)
    reads = re.findall(r"(?:from|join) (?:public\.|acuity\.)?(\w+)", words)
    if writes:
        return "; ".join(dict.fromkeys(f"{verb} {table}" for verb, table in writes))
    return f"{words.split()[0]} {', '.join(dict.fromkeys(reads))}"[:100]


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def _wait(check: Callable[[], None], *, timeout_s: float = 60) -> None:
    """Call until it raises nothing."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            check()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _print_result(cells: list[dict[str, Any]]) -> None:
    """Print the result of all cells with its goals."""
    at = {tuple(cell[key] for key in ("arm", "workers", "epoch_s", "size", "pgbouncer")): cell for cell in cells}
    goals = []
    for (arm, *where), cell in at.items():
        if arm != "acuity":
            continue
        workers, epoch_s, size, pgbouncer = where
        name = f"{workers}_workers_{epoch_s}_s_{size}_trials{'_pgbouncer' if pgbouncer else ''}"
        goals.append(make_goal(f"exact_budgets_{name}", cell["exact"], "== 1", met=cell["exact"]))
        plain = at.get(("optuna", *where))
        if plain is not None:
            half, cpu = plain["statements"] / 2, plain["server_cpu_ms"]
            statements, ours = cell["statements"], cell["server_cpu_ms"]
            goals.append(
                make_goal(f"statements_{name}", statements, f"<= {half:.1f} (half of Optuna's)", met=statements <= half)
            )
            goals.append(make_goal(f"server_cpu_ms_{name}", ours, f"<= {cpu} (plain Optuna)", met=ours <= cpu))
        if not pgbouncer:
            per_worker = cell["connections"] / workers
            goals.append(make_goal(f"connections_a_worker_{name}", per_worker, "<= 1.1", met=per_worker <= 1.1))
        if (workers, epoch_s) == (1_000, 60):
            p99 = cell["claim_ms_p99"]
            goals.append(make_goal(f"claim_ms_p99_{name}", p99, "< 1000", met=p99 < 1000))
    print_result(
        "fleet_scale",
        n={"trials_in_window": [cell["trials_in_window"] for cell in cells]},
        goals=goals,
        versions={"optuna": optuna.__version__, "python": platform.python_version(), "postgres": 15, "pgbouncer": 1.18},
        cells=cells,
    )


if __name__ == "__main__":
    main()
