"""Choose a GPU by a lock file if none is named: all containers of a host see the same GPUs."""

import fcntl
import itertools
import os
from pathlib import Path

import torch

from acuity.objectives.device.device import check_driver
from acuity.objectives.errors import InputError


def choose_device(choice: str, *, folder: Path) -> str:
    """Replace "auto" or "cuda" by the GPU with the fewest workers if there are several; else return choice.

    folder: one that all workers of this host share. InputError if it cannot hold lock files, or as `check_driver`.
    """
    check_driver(choice)  # torch counts GPUs by NVML, also those that it cannot use
    if choice not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return choice
    gpus = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
    return f"cuda:{lock_gpu(gpus, folder=folder)}"


def lock_gpu(gpus: list[str], *, folder: Path) -> int:
    """Lock one of the GPUs (UUIDs) until this process ends, also by a crash; returns its position.

    Device numbers differ between containers, so a lock is named after the GPU's UUID. The name ends with a turn: a GPU
    gets its second worker when every GPU has its first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for turn in itertools.count():
            for position, gpu in enumerate(gpus):
                lock = os.open(folder / f"gpu-{gpu}.{turn}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                else:
                    return position  # the file remains open, so the lock is held
    except OSError as error:
        raise InputError(
            f"{folder}: a GPU cannot be chosen by a lock there ({error.strerror}). "
            'Name the GPU with --device cuda:0, or another cache folder with [data] cache = "PATH"'
        ) from None
    raise AssertionError("itertools.count() has no end")
