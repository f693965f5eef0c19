"""Predict the probability of a finding with a network on its device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.device.memory import is_device_error
from acuity.objectives.errors import InputError
from acuity.objectives.training.augmentation import enlarge
from acuity.objectives.training.checkpoint import read_network_state
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.loader import BatchLoader, open_loaders
from acuity.objectives.training.network import make_network, normalisation

# Of a batch without a backward pass: 512 images of 64 px, 20 of 320 px.
_BATCH_PIXELS = 2**21
# A GPU needs fewer launches with more: 4,096 images of 64 px. A step without a backward pass keeps few tensors, so four
# training batches fit where one fits with it.
_MAX_GPU_BATCH_PIXELS, _TRAINING_BATCHES = 2**24, 4


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network on its device; its input has side x side pixels."""

    network: torch.nn.Module
    device: torch.device
    side: int
    precision: str
    batch_pixels: int
    """Pixels of a batch of predictions."""


def make_predictor(hyperparameters: Hyperparameters, *, device: torch.device) -> Predictor:
    """Build the network on the device; torch's seed determines its random weights.

    It sets the precision of fp32 products on a GPU for the whole process.
    """
    _allow_tf32(hyperparameters.precision == "tf32")
    network = make_network(
        hyperparameters.architecture,
        input_size=hyperparameters.side,
        pretrained=hyperparameters.pretrained,
        weights=hyperparameters.weights,
    ).to(device)
    if hyperparameters.precision == "bf16":
        _keep_classifier_in_fp32(network)
    if uses_channels_last(device, hyperparameters.precision):
        network = network.to(memory_format=torch.channels_last)
    return Predictor(
        network, device, hyperparameters.side, hyperparameters.precision, _prediction_pixels(hyperparameters, device)
    )


def _prediction_pixels(hyperparameters: Hyperparameters, device: torch.device) -> int:
    if device.type == "cpu":
        return _BATCH_PIXELS
    training = hyperparameters.batch_size * hyperparameters.side**2
    return min(max(_BATCH_PIXELS, _TRAINING_BATCHES * training), _MAX_GPU_BATCH_PIXELS)


def _allow_tf32(allowed: bool) -> None:
    """Allow or exclude TF32 in convolutions and matrix products of fp32 tensors on a GPU.

    PyTorch's default is TF32 in convolutions and fp32 in matrix products. These attributes set `fp32_precision` too; if
    only `fp32_precision` is set to "tf32", PyTorch 2.14 raises an error wherever these attributes are read.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def _keep_classifier_in_fp32(network: torch.nn.Module) -> None:
    """Exclude the last layer from autocast: a bf16 logit has 8 bits, and 8,000 images had 457 distinct logits.

    A user's network without timm's get_classifier() has as last layer its last Linear with one output, if any.
    """
    classifier: Any = (
        network.get_classifier()  # type: ignore[operator]  # a method of timm's networks
        if hasattr(network, "get_classifier")
        else tuple(m for m in network.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1)[-1:]
    )
    for layer in classifier if isinstance(classifier, tuple | list | torch.nn.ModuleList) else (classifier,):
        layer.forward = partial(_call_in_fp32, layer.forward)


def _call_in_fp32(forward: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return forward(features.float())


def uses_channels_last(device: torch.device, precision: str) -> bool:
    """Whether tensors are in the channels-last memory format.

    Images/s on one core of a CPU against the default format: test_resnet 1.4, mobilenetv3_small_050 1.8, densenet121
    1.3, efficientnet_b0 1.4, resnet10t 1.2, resnet34 and convnext_atto 0.96 times. A GPU's tensor cores (bf16, TF32)
    need this format, otherwise cuDNN transposes every layer's input (NVIDIA's guide; not measured here yet).
    """
    return device.type == "cpu" or precision != "fp32"


def predict_batches(predictor: Predictor, loader: BatchLoader, *, num_images: int) -> Iterator[torch.Tensor]:
    """Yield logits (float32 [B] on the device) of the loader's images in order; leaves the network in eval mode."""
    predictor.network.eval()
    for images in loader(torch.arange(num_images).split(max(16, predictor.batch_pixels // predictor.side**2))):
        with torch.inference_mode():
            yield compute_logits(predictor, enlarge(images.float().div_(255), side=predictor.side))


def compute_logits(predictor: Predictor, images: torch.Tensor) -> torch.Tensor:
    """Logits (float32 [B]) of images (float [B, 1, S, S] in [0, 1]) of the network's input size."""
    mean, std = normalisation(predictor.network)
    images = (images - mean) / std
    if uses_channels_last(predictor.device, predictor.precision):
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(predictor.device.type, dtype=torch.bfloat16, enabled=predictor.precision == "bf16"):
        logits: torch.Tensor = predictor.network(images)
    return logits.float().flatten()


def probabilities(logits: list[torch.Tensor]) -> NDArray[np.float64]:
    """Convert batches of logits to probabilities, in float64 so that values close to 1 keep their order."""
    values: NDArray[np.float64] = torch.cat(logits).double().sigmoid().cpu().numpy()
    return values


def score_images(
    checkpoint: bytes,
    hyperparameters: Hyperparameters,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    device: torch.device,
) -> NDArray[np.float64]:
    """Probability of the finding for each of the rows, predicted by the network of a checkpoint.

    images: uint8 [N, R, R], may be memory-mapped. Returns float64 [len(rows)]. InputError if the checkpoint is damaged
    or of another network.
    """
    predictor = load_network(checkpoint, hyperparameters, device=device)
    (loader,) = open_loaders(images, rows, device=device)
    return probabilities(list(predict_batches(predictor, loader, num_images=len(rows))))


def load_network(checkpoint: bytes, hyperparameters: Hyperparameters, *, device: torch.device) -> Predictor:
    """Load the network of a checkpoint in eval mode; InputError if the checkpoint is damaged or of another network."""
    # The checkpoint replaces pretrained weights, so they are not loaded. The training's batch may be too large here.
    settings = replace(hyperparameters, pretrained=False, weights=None, batch_size=1)
    predictor = make_predictor(settings, device=device)
    try:
        predictor.network.load_state_dict(read_network_state(checkpoint))
    except Exception as error:  # torch raises errors of many types for a damaged file
        if is_device_error(error):
            raise
        raise InputError(
            f"a kept network of {hyperparameters.architecture} cannot be read ({type(error).__name__}): its checkpoint "
            "is damaged, put it back from a copy"
        ) from error
    predictor.network.eval()
    return predictor
