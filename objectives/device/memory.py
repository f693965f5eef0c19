"""Memory of a device: out-of-memory errors, release after a failed step, peak and current use."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20
# oneDNN gives no other reason if it cannot allocate a scratchpad (seen with mobilenetv3_small_050 at its limit).
_MESSAGES = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory object",
    # On a GPU, for allocations outside PyTorch's allocator.
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # pytorch issue 128601
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "HOST_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN, if no workspace fits
)
_STATUS = Path("/proc/self/status")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step ran out of memory, by the error's type or by the message of PyTorch, oneDNN or a CUDA library."""
    if isinstance(error, torch.AcceleratorError):
        return "out of memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    )


def is_device_error(error: BaseException) -> bool:
    """Whether the error is the device's: out of memory, or a CUDA error. Data and arguments are not its cause."""
    return isinstance(error, torch.AcceleratorError) or is_out_of_memory(error)


def release_failed_step(device: torch.device) -> None:
    """Release the memory of a failed step; call it before the next training, when nothing holds the error any more.

    If a backward pass raises, autograd's queue of this thread keeps the nodes not yet processed, and all tensors that
    they saved, until the next backward pass. In a network with branches these are several hundred MiB, so that the
    next try ran out of memory at any batch size. A backward pass of one number empties the queue.
    """
    torch.zeros((), device=device, requires_grad=True).backward()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def watch_peak_memory(device: torch.device, *, reserved: bool = False) -> Callable[[], float]:
    """Start to watch the memory; the function returned gives the peak since then, in MiB.

    On a GPU: the peak of the tensors in torch's allocator in this process; with reserved, of the memory that the
    allocator has reserved for them, on which the process's limit acts. On a CPU: the rise of the process's resident
    memory above its size at the start, including images of the page cache while they are mapped in.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = torch.cuda.max_memory_reserved if reserved else torch.cuda.max_memory_allocated
        return lambda: peak(device) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the high-water mark to the current resident size
    except OSError:
        start_mib = _resident_peak_mib()
        return lambda: _resident_peak_mib() - start_mib  # 0 if earlier work of the process had a higher peak
    start_bytes = process_memory_bytes("VmHWM")
    # Linux's count is off by a few pages a thread, in either direction: the difference can be below 0.
    return lambda: max(0.0, (process_memory_bytes("VmHWM") - start_bytes) / MIB)


def held_memory_mib(device: torch.device) -> float:
    """Memory in use now, in MiB: on a GPU by torch's allocator in this process, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return resident_bytes() / MIB if _STATUS.exists() else _resident_peak_mib()


def spare_bytes(device: torch.device) -> float:
    """Bytes of this process's limit above its peak since `watch_peak_memory`; infinite without a limit."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.max_memory_reserved(device)
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY or not _STATUS.exists():
        return float("inf")
    freed = process_memory_bytes("VmHWM") - process_memory_bytes("VmRSS")
    return limit - process_memory_bytes("VmData") - freed


def reserved_memory_mib() -> float:
    """Memory that RLIMIT_DATA counts and this process does not hold yet, in MiB; 0 outside Linux."""
    if not _STATUS.exists():
        return 0.0
    return (process_memory_bytes("VmData") - process_memory_bytes("RssAnon")) / MIB


def resident_bytes() -> int:
    """Resident memory of this process; Linux only."""
    return process_memory_bytes("VmRSS")


def process_memory_bytes(field: str) -> int:
    """A size of this process in /proc/self/status, such as VmRSS; Linux only."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{_STATUS} has no {field}")


def _resident_peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)
