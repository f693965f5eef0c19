"""CUDA graphs: a capture notes kernels with their arguments and leaves all values as they were; a replay runs them.

Python's code does not run again at a replay, so a number that it has changed since the capture has no effect, as on a
GPU. While a stream is captured the host may neither wait for it nor copy from or to it; here that holds for pinned
memory too. Tensors of a capture keep their memory until the graph is gone; CUDA would use it for several of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from support.standin_gpu.streams import Block, Key

if TYPE_CHECKING:
    from support.standin_gpu import State


@dataclass
class Capture:
    """Work of one stream in its order."""

    stream: Key
    work: list[Callable[[], None]] = field(default_factory=list)
    accesses: dict[int, tuple[Block, bool]] = field(default_factory=dict)
    """Blocks that the graph uses, and whether it writes them."""
    before: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Storages that the capture has written, with their bytes from before."""
    generators: list[tuple[torch.Generator, torch.Tensor]] = field(default_factory=list)
    results: list[torch.Tensor] = field(default_factory=list)
    """Tensors that the capture has made, on the CPU."""

    def note_access(self, block: Block | None, *, write: bool) -> None:
        """Let replays check the order of work on this block."""
        if block is not None:
            self.accesses[id(block)] = block, write or self.accesses.get(id(block), (block, False))[1]

    def keep_before(self, on_cpu: torch.Tensor) -> None:
        """Keep the bytes of a tensor's storage before the capture's first write."""
        storage = on_cpu.untyped_storage()
        if storage.data_ptr() not in self.before and storage.nbytes():
            everything = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.before[storage.data_ptr()] = everything, everything.clone()

    def add(self, work: Callable[[], Any], results: list[torch.Tensor]) -> None:
        """Add a kernel; results: what it has made just now, in which later kernels look for its results."""
        self.results += results

        def again() -> None:
            made = work()
            for place, value in zip(results, _tensors(made) if results else [], strict=True):
                place.copy_(value)

        self.work.append(again)

    def finish(self) -> None:
        """Undo all writes: a capture computes nothing."""
        for everything, bytes_before in self.before.values():
            everything.copy_(bytes_before)
        for generator, numbers in self.generators:
            generator.set_state(numbers)
        for result in self.results:
            if result.is_floating_point():
                result.fill_(float("nan"))


def _tensors(made: Any) -> list[torch.Tensor]:
    if isinstance(made, torch.Tensor):
        return [made]
    return [tensor for value in made for tensor in _tensors(value)] if isinstance(made, list | tuple) else []


def graph_base(state: "State") -> type:
    """Class in place of torch._C._CUDAGraph."""

    class GraphBase:
        _has_graph_exec = True

        def __new__(cls, keep_graph: bool = False) -> "GraphBase":  # noqa: ARG004
            return super().__new__(cls)

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:  # noqa: ARG002
            assert state.capture is None, "one capture at a time"
            stream = state.order.current(state.device)
            if stream[1] == 0:
                raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
            self._capture = state.capture = Capture(stream)
            state.order.captured = stream
            state.capture.generators = [
                (generator, generator.get_state()) for generator in torch.cuda.default_generators
            ]

        def capture_end_pre(self) -> None:
            assert state.capture is self._capture
            state.capture = state.order.captured = None
            self._capture.finish()
            if state.capture_failed:
                state.capture_failed = False
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

        def capture_end_post(self) -> None:
            pass

        def capture_end(self) -> None:
            self.capture_end_pre()

        def instantiate(self) -> None:
            pass

        def replay(self) -> None:
            assert state.capture is None
            stream = state.order.current(state.device)
            number = state.order.issue(stream)
            state.kernels_launched += 1
            state.replays += 1
            for block, write in self._capture.accesses.values():
                state.order.access(block, stream, number, write=write)
                if block.stream == self._capture.stream:  # memory of the graph, which no other tensor gets
                    block.recorded.add(stream)
            for work in self._capture.work:
                work()

        def reset(self) -> None:
            del self._capture

        def pool(self) -> tuple[int, int]:
            return 0, id(self)

    return GraphBase
