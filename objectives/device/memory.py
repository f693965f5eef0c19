"""Memory of a device: out-of-memory errors, release after a failed step, and peak use."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

# oneDNN does not say more of a scratchpad that it could not allocate (mobilenetv3_small_050 at its limit).
_WORDS = ("can't allocate memory", "could not create a primitive", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for lack of memory: by type on a GPU, by PyTorch's or oneDNN's own words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


def forget_failed_step(device: torch.device) -> None:
    """Let go of what a step that failed left behind; before the next training, when nothing holds the error any more.

    A backward pass that raises leaves the nodes that it had not come to yet in autograd's queue of this thread, and all
    that they saved, until the next backward pass throws them out: in a network with branches several hundred MiB, so
    that the next try ran out of memory whatever its batch. A pass through a single number empties the queue.
    """
    torch.zeros((), device=device, requires_grad=True).backward()
    if device.type == "cuda":
        torch.cuda.empty_cache()


MIB = 2**20
_STATUS = Path("/proc/self/status")


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
    before = process_memory_bytes("VmHWM")
    # Linux counts to a few pages a thread, in either direction: the difference can be below 0.
    return lambda: max(0.0, (process_memory_bytes("VmHWM") - before) / MIB)


def reserved_memory_mib() -> float:
    """What this process may write to and does not hold yet, in MiB, as RLIMIT_DATA counts it; 0 beside Linux."""
    if not _STATUS.exists():
        return 0.0
    return (process_memory_bytes("VmData") - process_memory_bytes("RssAnon")) / MIB


def held_memory_mib(device: torch.device) -> float:
    """What is held now, in MiB: of a GPU by torch's allocator for this process, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return process_memory_bytes("VmRSS") / MIB if _STATUS.exists() else _resident_peak_mib()


def process_memory_bytes(field: str) -> int:
    """A size of this process in /proc/self/status, such as VmRSS; Linux only."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{_STATUS} has no {field}")


def _resident_peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)
