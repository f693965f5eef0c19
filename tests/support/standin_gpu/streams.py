"""Streams and events that record order: an access without a wait for an earlier stream's work is an error."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from support.standin_gpu.native import LOCK, drain

Key = tuple[int, int]
"""(device, stream id); id 0 is the default stream."""
_STREAMS_OF_A_DEVICE = 32  # of PyTorch's pool: the 33rd stream is the first one again


class OrderError(RuntimeError):
    """Work that CUDA does not order: the result would depend on chance."""


@dataclass
class Block:
    """Memory of one tensor's storage on a GPU, with the work on it that its streams have to do."""

    device: int
    stream: Key
    write: tuple[Key, int] | None = None
    reads: dict[Key, int] = field(default_factory=dict)
    recorded: set[Key] = field(default_factory=set)
    deferred: list[Callable[[], None]] = field(default_factory=list)
    """Copies into this block that its stream has not done yet."""


class Order:
    """How far each stream has come, and how far each stream and the host have waited for another."""

    def __init__(self) -> None:
        self._issued: Counter[Key] = Counter()
        self._seen: dict[Key, dict[Key, int]] = {}
        self._host: dict[Key, int] = {}
        self._pending: list[tuple[Key, int, Callable[[], None]]] = []
        self._pool: dict[int, itertools.cycle[int]] = {}
        self._threads = threading.local()
        self._main_threads: dict[int, Key] = {}
        self.violations: list[str] = []
        self.captured: Key | None = None
        """A stream that is captured: its work is not done now."""

    def new_stream(self, device: int) -> Key:
        with LOCK:
            numbers = self._pool.setdefault(device, itertools.cycle(range(1, _STREAMS_OF_A_DEVICE + 1)))
            return device, next(numbers)

    def current(self, device: int) -> Key:
        """The current stream of this thread; in autograd's threads that of the main thread, which calls backward()."""
        if isinstance(threading.current_thread(), threading._DummyThread):
            return self._main_threads.get(device, (device, 0))
        streams: dict[int, Key] = self._threads.__dict__.setdefault("streams", {})
        return streams.get(device, (device, 0))

    def set_current(self, stream: Key) -> None:
        self._threads.__dict__.setdefault("streams", {})[stream[0]] = stream
        if threading.current_thread() is threading.main_thread():
            self._main_threads[stream[0]] = stream

    def issue(self, stream: Key) -> int:
        """Number of a new piece of work on a stream."""
        with LOCK:
            self._issued[stream] += 1
            return self._issued[stream]

    def snapshot(self, stream: Key) -> dict[Key, int]:
        """All work that is done when what this stream has to do now is done."""
        with LOCK:
            return {**self._seen.get(stream, {}), stream: self._issued[stream]}

    def wait(self, stream: Key, snapshot: dict[Key, int]) -> None:
        """Let a stream's later work wait."""
        drain()
        with LOCK:
            seen = self._seen.setdefault(stream, {})
            for other, number in snapshot.items():
                seen[other] = max(seen.get(other, 0), number)

    def wait_on_host(self, snapshot: dict[Key, int]) -> None:
        """Let the host wait; copies to the host that are done then get their values."""
        drain()
        with LOCK:
            for other, number in snapshot.items():
                self._host[other] = max(self._host.get(other, 0), number)
            done = [copy for stream, number, copy in self._pending if number <= self._host.get(stream, 0)]
            self._pending = [entry for entry in self._pending if entry[1] > self._host.get(entry[0], 0)]
        for copy in done:
            copy()

    def wait_for_device(self, device: int) -> None:
        with LOCK:
            streams = [stream for stream in self._issued if stream[0] == device]
        self.wait_on_host({stream: self._issued[stream] for stream in streams})

    def is_done(self, snapshot: dict[Key, int]) -> bool:
        with LOCK:
            return all(self._host.get(stream, 0) >= number for stream, number in snapshot.items() if number)

    def defer(self, stream: Key, number: int, copy: Callable[[], None]) -> None:
        """Do a copy to the host when the host has waited for it."""
        with LOCK:
            self._pending.append((stream, number, copy))

    def access(self, block: Block, stream: Key, number: int, *, write: bool) -> None:
        """Note that a piece of work reads or writes a block; OrderError if it may run before earlier work on it."""
        if stream == self.captured:
            return
        with LOCK:
            earlier = [block.write] if block.write else []
            earlier += block.reads.items() if write else []
            for other, issued in earlier:
                if not self._ordered(other, issued, before=stream):
                    raise OrderError(
                        f"stream {stream} {'writes' if write else 'reads'} a tensor that stream {other} may still "
                        f"{'write' if (other, issued) == block.write else 'read'}: wait for its event first"
                    )
            if write:
                block.write, block.reads = (stream, number), {}
            else:
                block.reads[stream] = number
            copies, block.deferred = block.deferred, []
        for copy in copies:
            copy()

    def release(self, block: Block) -> None:
        """Note a violation if the allocator may reuse the memory while another stream still uses it."""
        with LOCK:
            uses = {**block.reads, **(dict([block.write]) if block.write else {})}
            for other, issued in uses.items():
                if other not in block.recorded and not self._ordered(other, issued, before=block.stream):
                    self.violations.append(
                        f"a tensor of stream {block.stream} was freed while stream {other} may still use it: "
                        "record_stream() is missing"
                    )

    def _ordered(self, other: Key, issued: int, *, before: Key) -> bool:
        return (
            other == before or self._seen.get(before, {}).get(other, 0) >= issued or self._host.get(other, 0) >= issued
        )


def stream_bases(state: Any) -> tuple[type, type]:
    """Classes in place of torch._C._CudaStreamBase and torch._C._CudaEventBase."""

    class StreamBase(torch.Stream):
        def __new__(
            cls, priority: int = 0, stream_id: int = 0, device_index: int = 0, device_type: int = 0
        ) -> "StreamBase":
            if device_type:
                key = (device_index, stream_id)
            else:
                torch.cuda._lazy_init()
                state.allocator.create_context(state.device)
                key = state.order.new_stream(state.device)
            stream = super().__new__(cls, stream_id=key[1], device_index=key[0], device_type=1)
            stream.priority = priority
            return stream

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        @property
        def key(self) -> Key:
            return self.device_index, self.stream_id

        @property
        def cuda_stream(self) -> int:
            return self.stream_id

        def query(self) -> bool:
            done: bool = state.order.is_done(state.order.snapshot(self.key))
            return done

        def synchronize(self) -> None:
            state.synchronise("synchronize", self.key)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, StreamBase) and self.key == other.key

        def __hash__(self) -> int:
            return hash(self.key)

        def __enter__(self) -> "StreamBase":
            self._before = torch.cuda.current_stream(self.device_index)
            torch.cuda.set_stream(self)
            return self

        def __exit__(self, *_: Any) -> None:
            torch.cuda.set_stream(self._before)

    class EventBase:
        def __new__(cls, **_: Any) -> "EventBase":
            return super().__new__(cls)

        def __init__(self, *_: Any, enable_timing: bool = False, **__: Any) -> None:
            self._timing = enable_timing
            self._snapshot: dict[Key, int] | None = None
            self.device: torch.device | None = None
            self.cuda_event = 0

        def record(self, stream: Any) -> None:
            if self.device is not None and self.device != stream.device:
                raise RuntimeError(
                    f"Event device {self.device.index} does not match recording stream's device {stream.device.index}."
                )
            self.device, self.cuda_event = stream.device, id(self)
            self._snapshot = state.order.snapshot(stream.key)

        def wait(self, stream: Any) -> None:
            if self._snapshot is not None:
                state.order.wait(stream.key, self._snapshot)

        def query(self) -> bool:
            return self._snapshot is None or state.order.is_done(self._snapshot)

        def synchronize(self) -> None:
            if self._snapshot is not None:
                state.counts["synchronize"] += 1
                state.order.wait_on_host(self._snapshot)

        def elapsed_time(self, end: "EventBase") -> float:
            if not self._timing or not end._timing:
                raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
            if not self.query() or not end.query():
                raise RuntimeError("CUDA error: device not ready")
            return 0.0

    return StreamBase, EventBase
