"""Keep a training's last epoch on its device, and write checkpoints in a thread."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event
from types import TracebackType
from typing import Any, Self

import torch

from acuity.objectives.device.memory import is_out_of_memory, spare_bytes
from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_to_bytes, list_tensors, map_tensors
from acuity.objectives.training.interface import Interrupted

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes checkpoints of one training in a thread; a context manager.

    `keep` copies the state after an epoch into a buffer on the device. The thread copies the buffer to the host, packs
    and saves it, but only if the next epoch would otherwise end more than interval_s after the last state that was
    written. A process that is killed therefore loses at most one epoch or interval_s, whichever is longer, and the time
    of a write. One checkpoint is in flight at a time; an epoch that ends during a write is not written.

    An Interrupted that leaves the block writes the kept state first. The end of the block waits for the thread. Errors
    of save(data) are raised by `keep` after the next epoch, by `write_last`, or at the end of the block. save=None
    writes nothing.

    The thread starts with the first write of an epoch before the last. Its stack and its heap take some 12 MiB of a
    CPU worker's limit, so a training of one epoch has no thread.

    Steps need their memory at the next epoch again. If it leaves no room for a buffer, the buffer of a GPU is on the
    host, and on a CPU every epoch's state is written before the next epoch starts.
    """

    def __init__(
        self,
        save: Callable[[memoryview], None] | None,
        *,
        device: torch.device,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._save = save
        self._device = device
        self._interval_s = interval_s
        self._clock = clock
        self._epoch_at = self._written_at = clock()
        self._buffer: list[torch.Tensor] = []
        self._buffer_is_free = Event()
        self._buffer_is_free.set()
        self._has_room: bool | None = None
        self._unwritten: Checkpoint | None = None  # its tensors are those of the buffer
        self._writing: Future[None] | None = None
        # A new thread's current GPU is the first one, where a copy would create a context.
        start = partial(torch.cuda.set_device, device) if device.type == "cuda" else lambda: None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint", initializer=start)
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" and save else None

    def __enter__(self) -> Self:
        return self

    def keep(self, checkpoint: Checkpoint) -> None:
        """Copy the state after an epoch, which the next step changes; write it if it is due."""
        if self._save is None:
            return
        now = self._clock()
        epoch_s, self._epoch_at = now - self._epoch_at, now
        is_writing = self._writing is not None and not self._writing.done()
        if not is_writing:
            self._finish_write()
        if self._has_room is None:
            self._has_room = self._find_room(checkpoint)
        if not self._has_room and self._device.type == "cpu":
            self._submit(checkpoint)
            self._finish_write()
            return
        self._buffer_is_free.wait()  # the copy of an earlier epoch to the host takes less than an epoch
        self._unwritten = None  # else its buffer would be kept beside a new one
        self._unwritten = self._copy_to_buffer(checkpoint)
        if now + epoch_s - self._written_at > self._interval_s and not is_writing:
            self._write_unwritten()
            self._written_at = now

    def write_last(self, checkpoint: Checkpoint) -> None:
        """Write the state at the end of the training, in the calling thread: no step is left that it would delay."""
        if self._save is None:
            return
        self._finish_write()
        self._unwritten, self._buffer = None, []
        self._write(checkpoint, self._record_steps())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish_write()
            elif issubclass(kind, Interrupted):
                if self._unwritten is not None:
                    self._log_failure()
                    self._write_unwritten()
                self._finish_write()
            else:
                self._log_failure()
        finally:
            self._thread.shutdown()

    def _finish_write(self) -> None:
        """Wait for the write in flight and raise its error; if it ran out of memory, the next epoch is written."""
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None
        if error is None:
            return
        try:
            if not is_out_of_memory(error):
                raise error
        finally:
            del writing, error  # with the traceback they are a cycle, which would keep the training's memory
        logger.warning("the checkpoint of an epoch is not written: out of memory")
        self._written_at = float("-inf")

    def _log_failure(self) -> None:
        """Wait for the write in flight; another error is on its way, or another write follows."""
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None
        if error is not None:
            logger.warning("the checkpoint of an epoch is not written: %s", error)

    def _find_room(self, checkpoint: Checkpoint) -> bool:
        """Whether the peak of the first epoch leaves memory for a buffer; on a CPU also for the packed bytes, twice."""
        state_bytes = sum(tensor.nbytes for tensor in _tensors(checkpoint))
        return spare_bytes(self._device) >= state_bytes * (1 if self._device.type == "cuda" else 3)

    def _copy_to_buffer(self, checkpoint: Checkpoint) -> Checkpoint:
        """Copy the tensors to the buffer; returns the checkpoint with these copies, in new dicts and lists."""
        sources = _tensors(checkpoint)
        if _layout(sources) != _layout(self._buffer):  # none yet, or the state of the user's training has grown
            self._buffer = []
            self._buffer = _allocate(sources, on_cpu=not self._has_room)
        _copy_tensors(sources, self._buffer)
        copies = iter(self._buffer)
        return _map_state(lambda _: next(copies), checkpoint)

    def _write_unwritten(self) -> None:
        assert self._unwritten is not None
        self._buffer_is_free.clear()
        self._submit(self._unwritten)
        self._unwritten = None

    def _submit(self, checkpoint: Checkpoint) -> None:
        self._writing = self._thread.submit(self._write, checkpoint, self._record_steps())

    def _record_steps(self) -> torch.cuda.Event | None:
        """An event after the steps so far, for the copy to the host to wait for; None on a CPU."""
        return None if self._copy_stream is None else torch.cuda.current_stream(self._device).record_event()

    def _write(self, checkpoint: Checkpoint, ready: torch.cuda.Event | None) -> None:
        """Copy to the host, pack and save."""
        assert self._save is not None
        try:
            if self._copy_stream is not None and ready is not None:
                # Pageable copies: only this thread waits for them, and only for this stream.
                with torch.cuda.stream(self._copy_stream):
                    self._copy_stream.wait_event(ready)
                    checkpoint = _map_state(lambda tensor: tensor.to("cpu"), checkpoint)
                self._buffer_is_free.set()
            data = checkpoint_to_bytes(checkpoint)
        finally:
            self._buffer_is_free.set()
        del checkpoint
        self._save(data)


def _tensors(checkpoint: Checkpoint) -> list[torch.Tensor]:
    return list_tensors((checkpoint.network, checkpoint.optimiser, checkpoint.scheduler))


def _layout(tensors: list[torch.Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _map_state(function: Callable[[torch.Tensor], Any], checkpoint: Checkpoint) -> Checkpoint:
    return replace(
        checkpoint,
        network=map_tensors(function, checkpoint.network),
        optimiser=map_tensors(function, checkpoint.optimiser),
        scheduler=map_tensors(function, checkpoint.scheduler),
    )


def _allocate(sources: list[torch.Tensor], *, on_cpu: bool) -> list[torch.Tensor]:
    """Tensors like the sources, on the CPU if asked or if the GPU has no memory left."""
    if not on_cpu:
        try:
            return [torch.empty_like(tensor) for tensor in sources]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return [torch.empty_like(tensor, device="cpu") for tensor in sources]


@torch.no_grad()
def _copy_tensors(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for source, target in zip(sources, targets, strict=True):
        if source.device != target.device:
            target.copy_(source)
            continue
        group = groups.setdefault((source.dtype, source.device), ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in groups.values():
        torch._foreach_copy_(*group)  # a few kernels on a GPU, where a copy of each tensor is a kernel
