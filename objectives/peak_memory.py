"""The most memory that a stretch of work held at once."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20


def watch_peak_memory(device: torch.device) -> Callable[[], float]:
    """Start watching; the function returned says the peak since then, in MiB.

    On a GPU: what torch's allocator handed out at most, this process alone. On a CPU: how far the process's resident
    memory rose above what it was at the start, so images read from the page cache count while they are mapped in.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: lowers the high-water mark to what is resident now
    except OSError:
        before = _resident_peak_mib()
        return lambda: _resident_peak_mib() - before  # 0 where an earlier stretch of work held more
    before = _linux_peak_mib()
    return lambda: max(0.0, _linux_peak_mib() - before)  # Linux counts to a few pages a thread, in either direction


def reserved_memory_mib() -> float:
    """What this process may write to and does not hold yet, in MiB, as RLIMIT_DATA counts it; 0 beside Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return (int(sizes["VmData"].split()[0]) - int(sizes["RssAnon"].split()[0])) / 1024


def held_memory_mib(device: torch.device) -> float:
    """What is held now, in MiB: of a GPU by torch's allocator for this process, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    status = Path("/proc/self/status")
    if not status.exists():
        return _resident_peak_mib()
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024


def _linux_peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _resident_peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)
