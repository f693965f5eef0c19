"""Which of several GPUs a worker takes, where nobody has said: containers of one host all see the same ones."""

import fcntl
import itertools
import os
from pathlib import Path

import torch

from study.errors import UsageError


def choose_device(choice: str, *, folder: Path) -> str:
    """Which GPU "auto" or "cuda" means where there are several: the one that fewest others chose; else choice itself.

    folder: one that all workers of this host see, and that lives as long as they do.
    """
    if choice not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return choice
    gpus = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
    return f"cuda:{take_gpu(gpus, folder=folder)}"


def take_gpu(gpus: list[str], *, folder: Path) -> int:
    """Take a GPU for as long as this process lives; returns its position. A killed process gives it back.

    Device numbers mean another GPU in every container, so a lock bears the GPU's own name. It has a number too: the
    second worker of a GPU comes when each has its first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for turn in itertools.count():
            for position, gpu in enumerate(gpus):
                lock = os.open(folder / f"gpu-{gpu}.{turn}.lock", os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                else:
                    return position  # the lock stays open, hence held
    except OSError as error:
        raise UsageError(
            f"{folder}: a GPU cannot be chosen by a lock there ({error.strerror}). "
            'Name the GPU with --device cuda:0, or another cache folder with [data] cache = "PATH"'
        ) from None
    raise AssertionError("itertools.count() has no end")
