"""The user's augmentation and loss as parts of a training step, with checks of what they return."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from acuity.objectives.device.memory import is_device_error
from acuity.objectives.errors import InputError, first_line
from acuity.objectives.training.own_function import OwnFunctionError, load_function

Augmentation = Callable[[torch.Tensor], torch.Tensor]
"""Images (float32 [B, 1, R, R] in [0, 1], on the device) -> as many images of the same shape."""
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, targets, positive_weight), float32 [B], [B] and [] on the device -> loss [], which backward() starts at."""


def load_augmentation(name: str) -> Augmentation:
    """Load the user's augmentation; a call of it raises OwnFunctionError where it raises or changes the shape."""
    return partial(_augment, name, load_function(name))


def load_loss(name: str) -> Loss:
    """Load the user's loss; a call of it raises OwnFunctionError where it raises or returns no number."""
    return partial(_loss, name, load_function(name))


def check_augmentation(name: str, resolution: int) -> None:
    """InputError if the user's augmentation does not change two images of this resolution to finite ones."""
    rng = torch.get_rng_state()
    try:
        images = load_augmentation(name)(torch.rand(2, 1, resolution, resolution))
    except OwnFunctionError as error:
        raise InputError(str(error)) from error
    finally:
        torch.set_rng_state(rng)
    if not images.isfinite().all():
        raise InputError(f'augmentation "{name}" gives NaN or infinite pixels at {resolution} px: correct it')


def check_loss(name: str) -> None:
    """InputError if the user's loss, or its gradient, is not finite for logits between -10 and 10."""
    logits = torch.linspace(-10, 10, 8, requires_grad=True)
    targets = torch.tensor([0.0, 1.0] * 4)
    try:
        loss = load_loss(name)(logits, targets, torch.tensor(3.0))
    except OwnFunctionError as error:
        raise InputError(str(error)) from error
    (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
    if gradient is None or not (loss.isfinite() and gradient.isfinite().all()):
        raise InputError(
            f'loss "{name}" is {loss.item():g} for logits from -10 to 10, its gradient '
            f"{'missing' if gradient is None else 'not finite' if loss.isfinite() else 'unknown'}: both must be "
            "finite, so correct it"
        )


def _augment(name: str, function: Callable[..., Any], images: torch.Tensor) -> torch.Tensor:
    augmented = _call("augmentation", name, function, images)
    if (
        not isinstance(augmented, torch.Tensor)
        or augmented.shape != images.shape
        or augmented.dtype != images.dtype
        or augmented.device != images.device
    ):
        raise OwnFunctionError(
            f'augmentation "{name}" returned {_described(augmented)} for {_described(images)}, must be the same: '
            "correct it"
        )
    return augmented


def _loss(
    name: str, function: Callable[..., Any], logits: torch.Tensor, targets: torch.Tensor, positive_weight: torch.Tensor
) -> torch.Tensor:
    loss = _call("loss", name, function, logits, targets, positive_weight)
    if not isinstance(loss, torch.Tensor) or loss.ndim > 0 or not loss.is_floating_point() or not loss.requires_grad:
        raise OwnFunctionError(
            f'loss "{name}" returned {_described(loss)}, must be a float tensor of shape [] that depends on the '
            "logits: correct it"
        )
    return loss


def _call(part: str, name: str, function: Callable[..., Any], *arguments: torch.Tensor) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # the user's code
        if is_device_error(error):
            raise
        raise OwnFunctionError(f'{part} "{name}" raised {type(error).__name__}: {first_line(error)}') from error


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device.type}"
