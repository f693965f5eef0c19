"""What a training needs to go on after its last finished epoch, as bytes."""

import io
import logging
import pickle
import zipfile
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)
_DAMAGED = (EOFError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State after the last finished epoch.

    No generator is in it: every epoch starts from generators seeded by (seed, epoch), so there is none to carry over.
    """

    identity: str  # hyperparameters, seed and data it belongs to
    aucs: list[float]  # validation AUC of each finished epoch
    seconds: float  # spent so far
    network: dict[str, Any]
    optimiser: dict[str, Any]
    scheduler: dict[str, Any]


def pack(checkpoint: Checkpoint) -> bytes:
    """As bytes that hold tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(vars(checkpoint), buffer)
    return buffer.getvalue()


def unpack(data: bytes, *, identity: str, device: torch.device) -> Checkpoint | None:
    """The checkpoint, or None with a warning if it is damaged or another training's: then one starts from zero."""
    try:
        checkpoint = Checkpoint(**torch.load(io.BytesIO(data), map_location=device, weights_only=True))
    except _DAMAGED as error:
        logger.warning("checkpoint of %d bytes is damaged (%s): training starts from zero", len(data), error)
        return None
    if checkpoint.identity != identity:
        logger.warning("checkpoint belongs to %s, not to %s: training starts from zero", checkpoint.identity, identity)
        return None
    return checkpoint


def network_alone(data: bytes) -> bytes:
    """The same checkpoint without what only training needs, a third of its size: what is kept of a finalist."""
    saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return pack(Checkpoint(**(saved | {"optimiser": {}, "scheduler": {}})))


def read_network(data: bytes, *, device: torch.device) -> dict[str, Any]:
    """The network's state in a packed checkpoint; RuntimeError and the like where it is damaged."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)["network"]
    return state
