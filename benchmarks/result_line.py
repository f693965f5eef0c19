"""Prints the line of JSON that ends a benchmark: its figures, the hardware and the commit."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]


def print_result(
    benchmark: str, *, n: object, goals: Sequence[dict[str, Any]], hardware: str | None = None, **figures: Any
) -> None:
    """Print one line of JSON.

    n: number of repetitions, by part where a benchmark has several.
    hardware: the name of the GPU. Without it the processor is named.
    figures: further keys, in this order.
    """
    line = {"benchmark": benchmark, "hardware": hardware or _processor(), "commit": current_commit(), "n": n}
    print(json.dumps(line | figures | {"goals": goals}), flush=True)


def make_goal(
    name: str,
    value: float,
    goal: str,
    *,
    met: object,
    low: float | None = None,
    high: float | None = None,
    digits: int = 3,
) -> dict[str, Any]:
    """A figure beside its goal. Figures are rounded to so many digits.

    goal: the rule in words, for example ">= 5".
    low, high: spread of the figure.
    """
    spread = {"low": low, "high": high}
    rounded = {key: round(bound, digits) for key, bound in spread.items() if bound is not None}
    return {"name": name, "value": round(value, digits), **rounded, "goal": goal, "met": bool(met)}


def goal_of_runs(name: str, values: Sequence[float], goal: str, *, met: object) -> dict[str, Any]:
    """The median of the runs beside its goal, with the smallest and the largest run."""
    return make_goal(name, statistics.median(values), goal, met=met, low=min(values), high=max(values))


def _processor() -> str:
    """Processor, cores and load. The load shows whether other programs shared the cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def current_commit() -> str:
    """The short hash of the checkout's commit."""
    command = ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
