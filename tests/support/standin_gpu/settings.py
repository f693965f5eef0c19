"""Settings of the stand-in, which travel to child processes in an environment variable."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "ACUITY_STANDIN_GPU"
GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What the stand-in GPUs of a host are like."""

    devices: int = 1
    total_memory: int = 80 * GIB
    """Bytes of each GPU."""
    capability: tuple[int, int] = (9, 0)
    name: str = "Stand-in GPU"
    context_bytes: int = GIB // 2
    """Memory of each process's context on a GPU."""
    out_of_memory: str = "OutOfMemoryError"
    """Which error a refused allocation raises: a key of allocator.ERRORS."""
    folder: str | None = None
    """Processes that share the GPUs share this folder; each leaves its counts there when it ends."""
    fail_allocation: int | None = None
    """Number of the large allocation (1 MiB and more) that fails, counted from 1 in each process."""


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables by which a child process and its children get the stand-in as soon as they import torch."""
    site = str(Path(__file__).parent / "site")
    tests = str(Path(__file__).parents[2])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", site, tests)]
    return {VARIABLE: json.dumps(asdict(settings)), "PYTHONPATH": os.pathsep.join([site, tests, *given])}


def from_environment() -> Settings:
    """Settings in this process's environment."""
    values = json.loads(os.environ[VARIABLE])
    return Settings(**{**values, "capability": tuple(values["capability"])})
