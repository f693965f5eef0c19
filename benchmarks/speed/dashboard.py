"""Claim: the dashboard shows a study of 10,000 trials to one visitor or to six at once in less than 10 s of processor.

A real `acuity dashboard` serves a study of 10,000 trials from the embedded Postgres. One visitor, then six at the same
time ask for all trials, as optuna-dashboard's page does on the first visit, with gzip. The dashboard is started anew
for each. The overview is timed over 14 labels of 1,000 trials.

Run: python benchmarks/speed/dashboard.py   (3 minutes on two cores)
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import URL, create_engine, text

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.storage.embedded.server import embedded_server

sys.path.append(str(Path(__file__).parents[1]))
from filled_studies import register_filled, url_text
from result_line import make_goal, print_result

TRIALS, LABELS, EPOCHS = 10_000, 14, 10
VISITORS = (1, 6)
LONGEST_CPU_S = 10.0


def main() -> None:
    """Fill two databases, visit the dashboard, print the figures and one line of JSON."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        labels = _make_images(folder)
        with embedded_server(folder / "server") as url:
            for database, few, size in (("one", labels[:1], TRIALS), ("many", labels, TRIALS // 10)):
                _create(url, database)
                register_filled(url.set(database=database), folder, labels=few, size=size, epochs=EPOCHS)
            visits = [_visit(url.set(database="one"), "/api/studies/1?after=0", visitors) for visitors in VISITORS]
            overview = _visit(url.set(database="many"), "/", 1)
    for visit in (*visits, overview):
        print(visit, flush=True)
    cpu_s = max(visit["cpu_s"] for visit in visits)
    goal = make_goal("processor time, s", cpu_s, f"< {LONGEST_CPU_S:.0f}", met=cpu_s < LONGEST_CPU_S)
    print_result("dashboard", n=1, goals=[goal], trials=TRIALS, visits=visits, overview=overview)


def _make_images(folder: Path) -> list[str]:
    """Phantoms with 14 labels at random; returns the labels."""
    index = write_phantoms(folder, images=400, size=128)
    table = pd.read_csv(index)
    labels = [f"L{number}" for number in range(LABELS)]
    table["Finding Labels"] = [
        "|".join(label for number, label in enumerate(labels) if (row * 7919 + number * 104729) % 3 == 0)
        for row in range(len(table))
    ]
    table.to_csv(index, index=False)
    return labels


def _create(url: URL, database: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"create database {database}"))
    engine.dispose()


def _visit(url: URL, path: str, visitors: int) -> dict[str, Any]:
    """What a new dashboard needs to answer the visitors, who all ask at the same time."""

    def read(address: str) -> tuple[int, float]:
        began = time.perf_counter()
        request = urllib.request.Request(address + path, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return len(answer.read()), time.perf_counter() - began

    with _dashboard(url) as (address, process), ThreadPoolExecutor(visitors) as pool:
        idle_mb, idle_cpu_s = _memory_mb(process, "VmHWM"), _cpu_s(process)
        answers = list(pool.map(read, [address] * visitors))
        return {
            "path": path,
            "visitors": visitors,
            "slowest_s": round(max(seconds for _, seconds in answers), 2),
            "cpu_s": round(_cpu_s(process) - idle_cpu_s, 2),
            "sent_mb": round(answers[0][0] / 1e6, 2),
            "idle_mb": idle_mb,
            "peak_mb": _memory_mb(process, "VmHWM"),
        }


@contextmanager
def _dashboard(url: URL) -> Iterator[tuple[str, int]]:
    """The address and the process of a running `acuity dashboard`."""
    environment = os.environ | {"ACUITY_STORAGE": url_text(url), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "acuity", "dashboard", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        address = next(word for line in process.stdout for word in line.split() if word.startswith("http"))
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _memory_mb(process: int, key: str) -> int:
    fields = Path(f"/proc/{process}/status").read_text().split()
    return int(fields[fields.index(f"{key}:") + 1]) // 1024


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
