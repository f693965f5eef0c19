"""Checkpoints of a training as bytes."""

import io
import logging
import zipfile
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acuity.objectives.device.memory import is_device_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State of a training after its last finished epoch.

    It holds no state of a random number generator: (seed, epoch) seeds the generators of every epoch.
    """

    identity: str
    """Hyperparameters, seed and data of the training."""
    aucs: list[float]
    """Validation AUC of each finished epoch."""
    seconds: float
    """Training time so far."""
    network: dict[str, Any]
    optimiser: dict[str, Any]
    """Empty after the last epoch, like the scheduler: two thirds of the size."""
    scheduler: dict[str, Any]


def checkpoint_to_bytes(checkpoint: Checkpoint) -> memoryview:
    """Serialise a checkpoint; the bytes hold tensors and plain values only."""
    states = (checkpoint.network, checkpoint.optimiser, checkpoint.scheduler)
    tensors = list_tensors(states)
    file = _MemoryFile(sum(tensor.nbytes for tensor in tensors) + 2**10 * len(tensors) + 2**16)
    torch.save(vars(checkpoint), file)  # type: ignore[arg-type]  # it calls write and flush alone
    return file.written()


class _MemoryFile:
    """A file in memory for `torch.save`; other threads run during its writes.

    io.BytesIO keeps Python's lock while it copies: in 0.2 s of packing 244 MiB, another thread lost 0.12 s.
    """

    def __init__(self, size: int) -> None:
        self._bytes = np.empty(size, np.uint8)
        self._end = 0

    def write(self, data: bytes | memoryview) -> int:
        begin, self._end = self._end, self._end + len(data)
        if self._end > len(self._bytes):
            self._bytes = np.concatenate([self._bytes[:begin], np.empty(self._end, np.uint8)])
        self._bytes[begin : self._end] = np.frombuffer(data, np.uint8)
        return len(data)

    def flush(self) -> None:
        """Do nothing; `torch.save` calls it."""

    def written(self) -> memoryview:
        return self._bytes[: self._end].data


def checkpoint_from_bytes(data: bytes, *, identity: str) -> Checkpoint | None:
    """Read a checkpoint, with its tensors on the CPU; None with a warning if it is damaged or has another identity.

    Errors of a device are raised, also out of memory: the checkpoint is not their cause.
    """
    try:
        checkpoint = Checkpoint(**_load(data))
    except Exception as error:  # a damaged pickle raises any kind, such as AttributeError or IndexError
        if is_device_error(error):
            raise
        logger.warning("checkpoint of %d bytes is damaged (%s): training starts from zero", len(data), error)
        return None
    if checkpoint.identity != identity:
        logger.warning("checkpoint belongs to %s, not to %s: training starts from zero", checkpoint.identity, identity)
        return None
    return checkpoint


def read_network_state(data: bytes) -> dict[str, Any]:
    """Read the network's state dict from a checkpoint to the CPU; errors of any type if the bytes are damaged."""
    state: dict[str, Any] = _load(data)["network"]
    return state


def list_tensors(state: Any) -> list[torch.Tensor]:
    """The tensors of a state dict, or of a list or tuple of them, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = state.values()
    elif not isinstance(state, list | tuple):
        return []
    return [tensor for value in state for tensor in list_tensors(value)]


def map_tensors(function: Callable[[torch.Tensor], Any], state: Any) -> Any:
    """Copy a state dict with function(tensor) in place of each of its tensors."""
    if isinstance(state, torch.Tensor):
        return function(state)
    if isinstance(state, dict):
        mapped = copy(state)  # keeps the versions of the modules, an attribute of a network's state dict
        for key, value in state.items():  # update() of a Counter would count the pairs
            mapped[key] = map_tensors(function, value)
        return mapped
    if isinstance(state, list | tuple):
        return type(state)(map_tensors(function, value) for value in state)
    return state


def _load(data: bytes) -> dict[str, Any]:
    """The saved values. ValueError for an archive that is larger unpacked: 1.1 MB of such a checkpoint took 1.2 GB."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > len(data)
    ):
        raise ValueError("it is compressed, which torch.save never does")
    loaded: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return loaded
