"""A network that says how likely a finding is, on its device."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.errors import InputError
from acuity.objectives.training.augmentation import enlarge
from acuity.objectives.training.checkpoint import read_network
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.loader import Feed, open_feeds
from acuity.objectives.training.network import make_network, normalisation

_PREDICTED_PIXELS = 2**21  # of a batch that keeps nothing for a backward pass: 512 images of 64 px, 20 of 320 px


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network on its device; it sees side x side pixels."""

    network: torch.nn.Module
    device: torch.device
    side: int
    precision: str


def make_predictor(hyperparameters: Hyperparameters, *, device: torch.device) -> Predictor:
    """Build the network, whose random part follows torch's seed, and bring it to the device."""
    network = make_network(
        hyperparameters.architecture,
        input_size=hyperparameters.side,
        pretrained=hyperparameters.pretrained,
        weights=hyperparameters.weights,
    ).to(device)
    if is_channels_last(device, hyperparameters.precision):
        network = network.to(memory_format=torch.channels_last)
    return Predictor(network, device, hyperparameters.side, hyperparameters.precision)


def is_channels_last(device: torch.device, precision: str) -> bool:
    """Whether the channels of a pixel lie together in memory.

    On one core of a CPU, img/s against the default layout: test_resnet 1.4, mobilenetv3_small_050 1.8, densenet121 1.3,
    efficientnet_b0 1.4, resnet10t 1.2, resnet34 and convnext_atto 0.96 times. A GPU's tensor cores take half precision
    that way, else cuDNN turns every layer's input round (NVIDIA's guide; not measured here yet).
    """
    return device.type == "cpu" or precision == "bf16"


def predict_batches(predictor: Predictor, feed: Feed, *, num_images: int) -> Iterator[torch.Tensor]:
    """Logits (float32, on the device) of the feed's images in order; leaves the network in eval mode."""
    predictor.network.eval()
    for images in feed(torch.arange(num_images).split(max(16, _PREDICTED_PIXELS // predictor.side**2))):
        with torch.inference_mode():
            yield compute_logits(predictor, enlarge(images.float().div_(255), side=predictor.side))


def compute_logits(predictor: Predictor, images: torch.Tensor) -> torch.Tensor:
    """Logits (float32 [B]) of images of the network's input size, float [B, 1, S, S] in [0, 1]."""
    mean, std = normalisation(predictor.network)
    images = (images - mean) / std
    if is_channels_last(predictor.device, predictor.precision):
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(predictor.device.type, dtype=torch.bfloat16, enabled=predictor.precision == "bf16"):
        logits: torch.Tensor = predictor.network(images)
    return logits.float().flatten()


def probabilities(logits: list[torch.Tensor]) -> NDArray[np.float64]:
    """Of batches of logits, in float64, where probabilities close to 1 keep their order."""
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
    """Probability of the finding for each of the rows, by the network of a packed checkpoint.

    images: uint8 [N, R, R], may be memory-mapped. InputError where the checkpoint is not one of such a network.
    """
    predictor = load_predictor(checkpoint, hyperparameters, device=device)
    (feed,) = open_feeds(images, rows, device=device)
    return probabilities(list(predict_batches(predictor, feed, num_images=len(rows))))


def load_predictor(checkpoint: bytes, hyperparameters: Hyperparameters, *, device: torch.device) -> Predictor:
    """The network of a packed checkpoint, in eval mode; InputError where that is not of such a network."""
    # Whatever its weights started from, the checkpoint holds what became of them.
    predictor = make_predictor(replace(hyperparameters, pretrained=False, weights=None), device=device)
    try:
        predictor.network.load_state_dict(read_network(checkpoint, device=device))
    except Exception as error:  # torch's own errors of a damaged file are of many kinds
        raise InputError(
            f"a kept network of {hyperparameters.architecture} cannot be read ({type(error).__name__}): its checkpoint "
            "is damaged, put it back from a copy"
        ) from error
    predictor.network.eval()
    return predictor
