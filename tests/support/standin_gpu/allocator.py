"""Memory of the stand-in GPUs: what this process allocates and reserves, its limit, and what all processes hold."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from support.standin_gpu.native import LOCK, drain, process_lives
from support.standin_gpu.settings import GIB, MIB, Settings

# Out of memory as it reaches Python: the allocator's own error, and its disguises.
ERRORS: dict[str, type[Exception]] = {
    "OutOfMemoryError": torch.OutOfMemoryError,
    "AcceleratorError": torch.AcceleratorError,
    "cublas": RuntimeError,
    "cudnn": RuntimeError,
    "host": RuntimeError,
    "find": RuntimeError,
    "get": RuntimeError,
    "driver": RuntimeError,
}
_DISGUISES = {
    "AcceleratorError": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other "
    "API call, so the stacktrace below might be incorrect.",
    "cublas": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cudnn": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "host": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "find": "FIND was unable to find an engine to execute this computation",
    "get": "GET was unable to find an engine to execute this computation",
    "driver": "CUDA driver error: out of memory",
}
_SLOTS = 128


@dataclass
class Pool:
    """Blocks of one stream and one size class; PyTorch gives a free block only to its own stream."""

    reserved: int = 0
    free: int = 0


@dataclass
class Memory:
    """One GPU's memory as this process sees it, in bytes."""

    total: int
    physical: int
    fraction: float = 1.0
    has_context: bool = False
    allocated: int = 0
    allocated_peak: int = 0
    reserved_peak: int = 0
    out_of_memory_errors: int = 0
    retries: int = 0
    pools: dict[tuple[int, bool], Pool] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        return sum(pool.reserved for pool in self.pools.values())


class Allocator:
    """PyTorch's caching allocator without fragmentation: bytes are counted, addresses are not."""

    def __init__(self, settings: Settings, physical: list[int]) -> None:
        self._settings = settings
        self._large_allocations = 0
        self._memories = [Memory(settings.total_memory, number) for number in physical]
        self._host = _Host(Path(settings.folder), settings.devices) if settings.folder else None

    @property
    def memories(self) -> list[Memory]:
        """Memory of each visible GPU."""
        drain()
        return self._memories

    def create_context(self, device: int) -> None:
        """Create this process's context on a GPU unless it has one."""
        with LOCK:
            memory = self.memories[device]
            if not memory.has_context:
                if self._settings.context_bytes > self.free_bytes(device):
                    self._refuse(device, self._settings.context_bytes, driver=True)
                memory.has_context = True
                self._publish(memory)

    def allocate(self, device: int, stream: int, size: int) -> tuple[int, int]:
        """Take a block from the stream's pool; returns (stream, bytes), which free() takes."""
        self.create_context(device)
        memory, rounded = self.memories[device], -(-size // 512) * 512
        with LOCK:
            if rounded >= MIB:
                self._large_allocations += 1
                if self._large_allocations == self._settings.fail_allocation:
                    self._refuse(device, size)
            pool = memory.pools.setdefault((stream, rounded <= MIB), Pool())
            if rounded > pool.free:
                self._grow(device, pool, rounded)
            pool.free -= rounded
            memory.allocated += rounded
            memory.allocated_peak = max(memory.allocated_peak, memory.allocated)
        return stream, rounded

    def free(self, device: int, block: tuple[int, int]) -> None:
        """Return a block to its stream's pool."""
        stream, rounded = block
        with LOCK:
            memory = self._memories[device]
            memory.allocated -= rounded
            memory.pools[stream, rounded <= MIB].free += rounded

    def empty_cache(self, device: int) -> None:
        """Return free segments to the GPU."""
        with LOCK:
            memory = self.memories[device]
            for pool in memory.pools.values():
                released = pool.free // (2 * MIB) * 2 * MIB
                pool.free -= released
                pool.reserved -= released
            self._publish(memory)

    def free_bytes(self, device: int) -> int:
        """Bytes of a GPU that no process holds."""
        memory = self.memories[device]
        held = self._held(memory)
        others = self._host.others(memory.physical) if self._host else 0
        return memory.total - held - others

    def _held(self, memory: Memory) -> int:
        return memory.reserved + memory.has_context * self._settings.context_bytes

    def _grow(self, device: int, pool: Pool, rounded: int) -> None:
        segment = 2 * MIB if rounded <= MIB else 20 * MIB if rounded < 10 * MIB else -(-rounded // (2 * MIB)) * 2 * MIB
        memory = self.memories[device]
        with self._host.locked() if self._host else _unlocked():
            if not self._fits(device, segment):
                memory.retries += 1
                self.empty_cache(device)
            if not self._fits(device, segment):
                self._refuse(device, rounded)
            pool.reserved += segment
            pool.free += segment
            memory.reserved_peak = max(memory.reserved_peak, memory.reserved)
            self._publish(memory)

    def _fits(self, device: int, size: int) -> bool:
        memory = self.memories[device]
        return memory.reserved + size <= memory.fraction * memory.total and size <= self.free_bytes(device)

    def _refuse(self, device: int, size: int, *, driver: bool = False) -> None:
        memory, kind = self.memories[device], self._settings.out_of_memory
        if driver:
            raise torch.AcceleratorError(_DISGUISES["AcceleratorError"])
        memory.out_of_memory_errors += 1
        if kind != "OutOfMemoryError":
            raise ERRORS[kind](_DISGUISES[kind])
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / MIB:.2f} MiB. GPU {device} has a total capacity of "
            f"{memory.total / GIB:.2f} GiB of which {self.free_bytes(device) / MIB:.2f} MiB is free. "
            f"{memory.fraction * memory.total / GIB:.2f} GiB allowed; Of the allocated memory "
            f"{memory.allocated / GIB:.2f} GiB is allocated by PyTorch, and "
            f"{(memory.reserved - memory.allocated) / MIB:.2f} MiB is reserved by PyTorch but unallocated."
        )

    def _publish(self, memory: Memory) -> None:
        if self._host:
            self._host.publish(memory.physical, self._held(memory))


@contextmanager
def _unlocked() -> Iterator[None]:
    yield


class _Host:
    """What each process holds of each GPU, in a file that all processes of the host map."""

    def __init__(self, folder: Path, devices: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        size = 8 * _SLOTS * (1 + devices)
        self._file = os.open(folder / "memory", os.O_RDWR | os.O_CREAT, 0o666)
        self._depth = 0
        with self.locked():
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
        self._map = mmap.mmap(self._file, size)
        self._numbers = memoryview(self._map).cast("q")
        self._row = 1 + devices
        self._slot, self._pid = -1, 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the host's file. The allocator's lock keeps the process's other threads out."""
        self._depth += 1
        if self._depth == 1:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def others(self, device: int) -> int:
        """Bytes that other live processes hold."""
        rows = range(0, _SLOTS * self._row, self._row)
        return sum(
            self._numbers[row + 1 + device]
            for row in rows
            if self._numbers[row + 1 + device] and self._numbers[row] != os.getpid() and self._lives(row)
        )

    def publish(self, device: int, held: int) -> None:
        """Let other processes see what this one holds."""
        if self._pid != os.getpid():  # the first time, and in a fork
            with self.locked():
                self._slot = next(
                    row
                    for row in range(0, _SLOTS * self._row, self._row)
                    if not self._numbers[row] or not self._lives(row)
                )
                for offset in range(1, self._row):
                    self._numbers[self._slot + offset] = 0
                self._numbers[self._slot] = self._pid = os.getpid()
        self._numbers[self._slot + 1 + device] = held

    def _lives(self, row: int) -> bool:
        return process_lives(self._numbers[row])
