"""GPUs that compute on the CPU and enforce CUDA's rules: devices, memory, order of streams, waits of the host.

PyTorch's Python code and its dispatcher, autograd and autocast are the real ones. Replaced is what is below them: the
functions torch._C._cuda_*, the base classes of streams and events, CUDA's device guard and hooks, and the kernels.
"""

import atexit
import ctypes
import importlib
import json
import os
import sys
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.cuda

from support.standin_gpu.allocator import Allocator
from support.standin_gpu.graphs import Capture, graph_base
from support.standin_gpu.kernels import Kernels
from support.standin_gpu.native import (
    MAX_DEVICES,
    call_back,
    cpu_allocator,
    drain,
    end_without_destructors,
    guard_table,
    hooks_table,
    pack_device,
    start_backward_threads,
    unpack_device,
)
from support.standin_gpu.settings import Settings, environment
from support.standin_gpu.streams import Key, Order, OrderError, stream_bases

__all__ = ["OrderError", "Settings", "State", "environment", "install", "standin_gpu"]

_installed: "State | None" = None
_threads = threading.local()  # autograd's threads keep their device
_HOST_READS = ("item", "numpy", "tolist", "__bool__", "__float__", "__int__", "__index__", "__array__")


class State:
    """The stand-in of this process; tests read its counts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        assert settings.devices <= MAX_DEVICES
        self.physical = _visible(settings.devices)
        self.order = Order()
        self.allocator = Allocator(settings, self.physical)
        self.counts: Counter[str] = Counter()
        """How often the host waited for a GPU: item, copy_to_host, copy_to_device, pageable_copy, size_of_result and
        synchronize."""
        self.kernels_launched = 0
        self.replays = 0
        """How many graphs were launched; each also counts as one kernel."""
        self.capture: Capture | None = None
        self.capture_failed = False
        self.sync_debug_mode = 0
        self._process = os.getpid()
        self._undo: list[Any] = []

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return int(_threads.__dict__.get("device", 0))

    @device.setter
    def device(self, index: int) -> None:
        _threads.device = index

    def set_device(self, index: int) -> None:
        """cudaSetDevice: CUDA 12 and later create the context at once."""
        if not 0 <= index < len(self.physical):
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        if index != self.device:
            self.device = index
            self.allocator.create_context(index)

    def synchronise(self, kind: str, stream: Key) -> None:
        """Count a wait of the host for a stream's work; an error while the stream is captured."""
        if self.capture is not None and self.capture.stream == stream:
            self.capture_failed = True
            raise torch.AcceleratorError(f"CUDA error: operation not permitted when stream is capturing ({kind})")
        self.counts[kind] += 1
        if self.sync_debug_mode and kind != "synchronize":
            message = f"called a synchronizing CUDA operation ({kind})"
            if self.sync_debug_mode == 2:
                raise RuntimeError(message)
            warnings.warn(message, UserWarning, stacklevel=3)
        self.order.wait_on_host(self.order.snapshot(stream))

    def check(self) -> None:
        """Raise what the release of a tensor found, since a release itself cannot raise."""
        drain()
        if self.order.violations:
            raise OrderError(self.order.violations.pop())


def install(settings: Settings | None = None, **changes: Any) -> State:
    """Put stand-in GPUs into this process until standin_gpu's end or the process's; keywords are fields of Settings."""
    global _installed
    assert _installed is None, "a stand-in is installed already"
    _threads.device = 0
    state = _installed = State(settings or Settings(**changes))
    _replace_functions(state)
    kernels = Kernels(state)
    state._undo.append(kernels.remove)
    state.kernels = kernels  # type: ignore[attr-defined]
    _replace_objects(state, kernels)
    _check_host_reads(state, kernels)
    _replace_storage(state)
    return state


@contextmanager
def standin_gpu(settings: Settings | None = None, **changes: Any) -> Iterator[State]:
    """The stand-in for a block of code; keywords are fields of Settings."""
    state = install(settings, **changes)
    try:
        yield state
    finally:
        _remove(state)


def _remove(state: State) -> None:
    global _installed
    while state._undo:
        state._undo.pop()()
    _installed = None


def _visible(devices: int) -> list[int]:
    """Numbers of the GPUs in CUDA_VISIBLE_DEVICES, up to the first invalid entry."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(range(devices))
    names = {str(number): number for number in range(devices)} | {
        f"GPU-{_uuid(number)}": number for number in range(devices)
    }
    visible: list[int] = []
    for name in named.split(","):
        if name.strip() not in names:
            break
        visible.append(names[name.strip()])
    return visible


def _uuid(physical: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"stand-in GPU {physical}"))


def _set(state: State, owner: Any, name: str, value: Any) -> None:
    """Replace an attribute until the stand-in is removed."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    state._undo.append(lambda: delattr(owner, name) if before is missing else setattr(owner, name, before))


def _replace_functions(state: State) -> None:
    """Replace torch._C._cuda_* and what torch.cuda's modules hold of them."""
    order, allocator = state.order, state.allocator

    def init() -> None:
        if not state.physical:
            raise RuntimeError("No CUDA GPUs are available")
        torch.cuda.default_generators = tuple(torch.Generator() for _ in state.physical)  # type: ignore[assignment]

    def exchange(index: int) -> int:
        before = state.device
        if index >= 0:
            state.set_device(index)
        return before

    def maybe_exchange(index: int) -> int:
        before = state.device
        if index >= 0:
            state.device = index  # without a context, the number is kept for later
        return before

    def set_stream(stream_id: int, device_index: int, **_: int) -> None:
        state.set_device(device_index)
        order.set_current((device_index, stream_id))

    def current_stream(device: int) -> tuple[int, int, int]:
        key = order.current(device if device >= 0 else state.device)
        return key[1], key[0], 1

    def synchronize() -> None:
        allocator.create_context(state.device)
        if state.capture is not None:
            state.synchronise("synchronize", state.capture.stream)
        state.counts["synchronize"] += 1
        order.wait_for_device(state.device)

    def set_fraction(fraction: float, device: int) -> None:
        allocator.memories[device].fraction = fraction

    def reset_peak(device: int) -> None:
        memory = allocator.memories[device]
        memory.allocated_peak, memory.reserved_peak = memory.allocated, memory.reserved

    def statistics(device: int) -> dict[str, Any]:
        memory = allocator.memories[device]
        byte_counts = {
            "allocated_bytes": (memory.allocated, memory.allocated_peak),
            "reserved_bytes": (memory.reserved, max(memory.reserved_peak, memory.reserved)),
            "active_bytes": (memory.allocated, memory.allocated_peak),
        }
        return {
            "num_ooms": memory.out_of_memory_errors,
            "num_alloc_retries": memory.retries,
            **{name: {"all": {"current": now, "peak": peak}} for name, (now, peak) in byte_counts.items()},
        }

    def empty_cache() -> None:
        for device in range(len(state.physical)):
            allocator.empty_cache(device)

    def properties(device: int) -> SimpleNamespace:
        major, minor = state.settings.capability
        return SimpleNamespace(
            name=state.settings.name,
            uuid=_uuid(state.physical[device]),
            major=major,
            minor=minor,
            total_memory=state.settings.total_memory,
            multi_processor_count=132,
            warp_size=32,
            is_integrated=False,
            is_multi_gpu_board=False,
            max_threads_per_multi_processor=2048,
            regs_per_multiprocessor=65536,
            shared_memory_per_block=49152,
            L2_cache_size=50 * 2**20,
            gcnArchName="",
        )

    def set_sync_debug_mode(mode: int) -> None:
        state.sync_debug_mode = mode

    def memory_info(device: int) -> tuple[int, int]:
        allocator.create_context(device)
        return allocator.free_bytes(device), state.settings.total_memory

    functions = {
        "getDeviceCount": lambda: len(state.physical),
        "init": init,
        "isInBadFork": lambda: os.getpid() != state._process and torch.cuda._initialized,
        "getDevice": lambda: state.device,
        "setDevice": state.set_device,
        "exchangeDevice": exchange,
        "maybeExchangeDevice": maybe_exchange,
        "hasPrimaryContext": lambda device: allocator.memories[device].has_context,
        "synchronize": synchronize,
        "setStream": set_stream,
        "getCurrentStream": current_stream,
        "getCurrentRawStream": lambda device: current_stream(device)[0],
        "getDefaultStream": lambda device: (0, device, 1),
        "isCurrentStreamCapturing": lambda: (
            state.capture is not None and state.capture.stream == order.current(state.device)
        ),
        "emptyCache": empty_cache,
        "memoryStats": statistics,
        "resetPeakMemoryStats": reset_peak,
        "resetAccumulatedMemoryStats": lambda _: None,
        "setMemoryFraction": set_fraction,
        "getMemoryFraction": lambda device: allocator.memories[device].fraction,
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: state.sync_debug_mode,
        "canDeviceAccessPeer": lambda *_: True,
        "clearCublasWorkspaces": lambda: None,
        "ipc_collect": lambda: None,
        "memorySnapshot": lambda *_: {"segments": [], "device_traces": []},
    }
    replaced = {}
    for name, function in functions.items():
        replaced[id(getattr(torch._C, f"_cuda_{name}"))] = function
        _set(state, torch._C, f"_cuda_{name}", function)
    for module in [module for name, module in sys.modules.items() if name.startswith("torch.cuda") and module]:
        for name, value in list(vars(module).items()):
            if id(value) in replaced:
                _set(state, module, name, replaced[id(value)])
    runtime = SimpleNamespace(
        cudaMemGetInfo=memory_info,
        cudaError=SimpleNamespace(success=0),
        cudaGetErrorString=lambda code: f"error {code}",
    )
    _set(state, torch.cuda, "_cudart", runtime)
    _set(state, torch.cuda, "_get_device_properties", properties)
    _set(state, torch.cuda, "default_generators", ())
    _set(state, torch.cuda, "_initialized", False)
    _set(state, torch.cuda, "_cached_device_count", None)

    before = torch._C._CudaStreamBase, torch._C._CudaEventBase
    torch._C._CudaStreamBase, torch._C._CudaEventBase = stream_bases(state)  # type: ignore[misc]
    streams = sys.modules["torch.cuda.streams"]
    classes = {name: vars(streams)[name] for name in ("Stream", "ExternalStream", "Event")}
    importlib.reload(streams)
    torch._C._CudaStreamBase, torch._C._CudaEventBase = before  # type: ignore[misc]
    state._undo.append(lambda: vars(streams).update(classes))
    for name in classes:
        _set(state, torch.cuda, name, vars(streams)[name])

    graphs, graph_before = sys.modules["torch.cuda.graphs"], torch._C._CUDAGraph
    torch._C._CUDAGraph = graph_base(state)  # type: ignore[misc]
    graph_classes = {name: vars(graphs)[name] for name in ("CUDAGraph", "graph")}
    importlib.reload(graphs)
    torch._C._CUDAGraph = graph_before  # type: ignore[misc]
    state._undo.append(lambda: vars(graphs).update(graph_classes))
    for name in graph_classes:
        _set(state, torch.cuda, name, vars(graphs)[name])
    if hasattr(torch._C, "_host_emptyCache"):
        _set(state, torch._C, "_host_emptyCache", lambda: None)


def _replace_objects(state: State, kernels: Kernels) -> None:
    """Replace the functions that C++ code calls on CUDA's device guard and hooks."""
    guard, hooks = guard_table(), hooks_table()
    count = len(state.physical)

    @call_back(ctypes.c_uint16, ctypes.c_uint16)
    def exchange_device(packed: int) -> int:
        before, index = state.device, unpack_device(packed)
        if index >= 0:
            state.device = index
        return pack_device(before)

    @call_back(ctypes.c_uint16)
    def get_device() -> int:
        return pack_device(state.device)

    @call_back(None, ctypes.c_uint16)
    def set_device(packed: int) -> None:
        if unpack_device(packed) >= 0:
            state.device = unpack_device(packed)

    guard.replace("exchangeDevice", exchange_device)
    guard.replace("getDevice", get_device)
    guard.replace("setDevice", set_device)
    guard.replace("uncheckedSetDevice", set_device)
    counted = [MAX_DEVICES]
    guard.replace("deviceCount", call_back(ctypes.c_int8)(lambda: counted[0]))

    @call_back(ctypes.c_bool, ctypes.c_int8)
    def has_primary_context(index: int) -> bool:
        return state.allocator.memories[index].has_context

    hooks.replace("hasPrimaryContext", has_primary_context)
    hooks.replace("isAvailable", call_back(ctypes.c_bool)(lambda: count > 0))
    hooks.replace("init", call_back(None)(lambda: None))
    hooks.replace("deviceCount", call_back(ctypes.c_int8)(lambda: count))
    hooks.replace("getNumGPUs", call_back(ctypes.c_int)(lambda: count))
    hooks.replace("hasCUDA", call_back(ctypes.c_bool)(lambda: True))
    hooks.replace("getCurrentDevice", call_back(ctypes.c_int8)(lambda: state.device))
    hooks.replace("current_device", call_back(ctypes.c_int8)(lambda: state.device))
    hooks.replace("isPinnedPtr", call_back(ctypes.c_bool, ctypes.c_void_p)(kernels.is_pinned))
    allocator = cpu_allocator()
    hooks.replace("getPinnedMemoryAllocator", call_back(ctypes.c_void_p)(lambda: allocator))
    hooks.replace("compiledWithCuDNN", call_back(ctypes.c_bool)(lambda: False))
    for table in (guard, hooks):
        table.install()
        state._undo.append(table.restore)
        atexit.register(table.restore)
    start_backward_threads()
    end_without_destructors()
    counted[0] = count
    if state.settings.folder:
        atexit.register(_write_counts, state)


def _check_host_reads(state: State, kernels: Kernels) -> None:
    """Let reads of a CPU tensor fail while its values are on their way."""
    for name in _HOST_READS:
        original = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            kernels.check_host_read(tensor)
            return _original(tensor, *args, **kwargs)

        _set(state, torch.Tensor, name, read)
    for name in ("empty", "zeros", "ones", "full", "tensor", "empty_like", "zeros_like", "rand", "randn"):
        function = getattr(torch, name)

        def make(*args: Any, _function: Any = function, pin_memory: bool = False, **kwargs: Any) -> Any:
            made = _function(*args, **kwargs)
            return made.pin_memory() if pin_memory else made

        _set(state, torch, name, make)


def _replace_storage(state: State) -> None:
    """Let torch.UntypedStorage(bytes, device="cuda:0") take its memory from the stand-in."""

    def new(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is not None and torch.device(device).type == "cuda":
            return torch.empty(args[0] if args else 0, dtype=torch.uint8, device=device).untyped_storage()
        return torch._C.StorageBase.__new__(cls, *args, device=device, **kwargs)

    _set(state, torch.UntypedStorage, "__new__", staticmethod(new))


def _write_counts(state: State) -> None:
    """Leave this process's counts for the test that started it."""
    counts = {
        "waits": dict(state.counts),
        "kernels_launched": state.kernels_launched,
        "settings": asdict(state.settings),
        "memory": [
            {name: value for name, value in vars(memory).items() if name != "pools"} | {"reserved": memory.reserved}
            for memory in state.allocator.memories
        ],
    }
    assert state.settings.folder
    Path(state.settings.folder, f"counts-{os.getpid()}.json").write_text(json.dumps(counts))
