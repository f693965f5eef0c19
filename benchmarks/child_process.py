"""Runs a part of a benchmark, or an Acuity command, in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# -P keeps the script's folder off the module path.
PYTHON = [sys.executable, "-P"]


def run_script(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark's script in a new Python process; returns the JSON of its last line.

    A script that fails raises subprocess.CalledProcessError. Its errors are on the terminal.
    """
    done = subprocess.run([*PYTHON, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return last_json(done.stdout)


def last_json(printed: str) -> Any:
    """The JSON of the last line."""
    return json.loads(printed.splitlines()[-1])


def private_environment(folder: Path) -> dict[str, str]:
    """Environment variables for Acuity commands whose database and cache lie in the folder."""
    environment = {key: value for key, value in os.environ.items() if key != "ACUITY_STORAGE"}
    return environment | {"ACUITY_EMBEDDED_DIR": str(folder / "server"), "XDG_CACHE_HOME": str(folder / "home")}


@dataclass(frozen=True)
class TimedCommand:
    """A command that has ended."""

    stdout: str
    seconds: float
    """Wall time, the start of Python included."""
    cpu_s: float
    """CPU time of the command and its children."""


def time_command(command: list[str], *, environment: Mapping[str, str] | None = None) -> TimedCommand:
    """Run a command to its end and time it. A command that fails ends the benchmark with the command's output."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds, after = time.perf_counter() - began, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return TimedCommand(done.stdout, seconds, cpu_s)


def cpu_with_children(process: int) -> float:
    """CPU seconds of a process, its children and its ended children."""
    ticks = 0
    children = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    for number in (process, *map(int, children.stdout.split())):
        try:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(fields[place]) for place in ((11, 12, 13, 14) if number == process else (11, 12)))
    return ticks / os.sysconf("SC_CLK_TCK")
