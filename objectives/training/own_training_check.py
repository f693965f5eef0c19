"""Check the user's training function with small random images, before the launch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from acuity.objectives.errors import InputError
from acuity.objectives.training.checkpoint import read_network_state
from acuity.objectives.training.interface import Diverged, Hyperparameters, LabelledImages
from acuity.objectives.training.own_function import OwnFunctionError
from acuity.objectives.training.train import train

CHECKED_BATCH = 4
_TRAINING, _VALIDATION, _EPOCHS = 16, 8, 3
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of names of tensors that a forward pass changes, without a training step."""


def check_training(hyperparameters: Hyperparameters) -> None:
    """InputError if the function of hyperparameters.train does not train, report and continue a small training.

    It trains three epochs of 16 random images on the CPU. Then it continues from the checkpoint of the first epoch, and
    the report of the second one ends it.
    """
    settings = replace(hyperparameters, epochs=_EPOCHS, batch_size=CHECKED_BATCH, pretrained=False, weights=None)
    saved: list[bytes] = []
    rng = torch.get_rng_state()
    try:
        _train(settings, stop_after=_EPOCHS, start=None, save=saved.append)
        first, last = read_network_state(saved[0]), read_network_state(saved[-1])
        if all(torch.equal(first[name], last[name]) for name in first if not name.endswith(_BUFFERS)):
            raise InputError(
                f'train "{settings.train}" reported {_EPOCHS} epochs but did not change the network: train the network '
                "that it is given, not a copy"
            )
        _train(settings, stop_after=2, start=saved[0], save=None)
    except Diverged as error:
        raise InputError(f'train "{settings.train}" with random images: {error}') from error
    except OwnFunctionError as error:
        raise InputError(str(error)) from error
    finally:
        torch.set_rng_state(rng)


def _train(
    settings: Hyperparameters, *, stop_after: int, start: bytes | None, save: Callable[[bytes], None] | None
) -> None:
    generator = np.random.default_rng(0)
    images = _TRAINING + _VALIDATION
    rows = np.arange(images)
    data = LabelledImages(
        generator.integers(0, 256, (images, settings.resolution, settings.resolution), dtype=np.uint8),
        targets=(rows % 2).astype(np.float32),
        patients=rows,
        training=rows[:_TRAINING],
        validation=rows[_TRAINING:],
    )
    train(
        settings,
        data,
        seed=0,
        device=torch.device("cpu"),
        report=lambda epoch, _: epoch == stop_after,
        load_checkpoint=lambda: start,
        save_checkpoint=(lambda packed: save(bytes(packed))) if save else None,
        checkpoint_s=0,
    )
