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

from sqlalchemy import URL

from acuity.storage.embedded.server import embedded_server

sys.path.append(str(Path(__file__).parents[1]))
from child_process import cpu_with_children
from filled_studies import administer, register_filled, url_text, write_labelled_phantoms
from result_line import make_goal, print_result

TRIALS, EPOCHS = 10_000, 10
LABELS = tuple(f"L{number}" for number in range(14))
VISITORS = (1, 6)
LONGEST_CPU_S = 10.0


def main() -> None:
    """Fill two databases, visit the dashboard, print the figures and one line of JSON."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        write_labelled_phantoms(folder, LABELS)
        with embedded_server(folder / "server") as url:
            for database, few, size in (("one", LABELS[:1], TRIALS), ("many", LABELS, TRIALS // 10)):
                administer(url, f"create database {database}")
                register_filled(url.set(database=database), folder, labels=few, size=size, epochs=EPOCHS)
            visits = [_visit(url.set(database="one"), "/api/studies/1?after=0", visitors) for visitors in VISITORS]
            overview = _visit(url.set(database="many"), "/", 1)
    for visit in (*visits, overview):
        print(visit, flush=True)
    cpu_s = max(visit["cpu_s"] for visit in visits)
    goal = make_goal("processor time, s", cpu_s, f"< {LONGEST_CPU_S:.0f}", met=cpu_s < LONGEST_CPU_S)
    print_result("dashboard", n=1, goals=[goal], trials=TRIALS, visits=visits, overview=overview)


def _visit(url: URL, path: str, visitors: int) -> dict[str, Any]:
    """What a new dashboard needs to answer the visitors, who all ask at the same time."""

    def read(address: str) -> tuple[int, float]:
        began = time.perf_counter()
        request = urllib.request.Request(address + path, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return len(answer.read()), time.perf_counter() - began

    with _dashboard(url) as (address, process), ThreadPoolExecutor(visitors) as pool:
        idle_mb, idle_cpu_s = _peak_mb(process), cpu_with_children(process)
        answers = list(pool.map(read, [address] * visitors))
        return {
            "path": path,
            "visitors": visitors,
            "slowest_s": round(max(seconds for _, seconds in answers), 2),
            "cpu_s": round(cpu_with_children(process) - idle_cpu_s, 2),
            "sent_mb": round(answers[0][0] / 1e6, 2),
            "idle_mb": idle_mb,
            "peak_mb": _peak_mb(process),
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


def _peak_mb(process: int) -> int:
    fields = Path(f"/proc/{process}/status").read_text().split()
    return int(fields[fields.index("VmHWM:") + 1]) // 1024


if __name__ == "__main__":
    main()
