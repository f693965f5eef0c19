"""Random rotation, shift, zoom, brightness and contrast of a batch of images, the same at every image size."""

import math

import torch
import torch.nn.functional as F

ROTATION_DEGREES = 10.0
TRANSLATION = 0.05  # fraction of the side
SCALE = 0.1
BRIGHTNESS = 0.1  # fraction of the range from black to white
CONTRAST = 0.2
NUM_PARAMETERS = 6
NUM_PREPARED = 8


def draw_augmentation(num_images: int, *, generator: torch.Generator) -> torch.Tensor:
    """Draw the random parameters of each image on the CPU: float32 [N, 6] in [-1, 1]."""
    return torch.rand(num_images, NUM_PARAMETERS, generator=generator) * 2 - 1


def prepare_augmentation(parameters: torch.Tensor) -> torch.Tensor:
    """Compute each image's sampling matrix, contrast and brightness: float32 [N, 8] from parameters [N, 6] in [-1, 1].

    For all images of an epoch at once; a step would have 16 operations more.
    """
    angle = parameters[:, 0] * math.radians(ROTATION_DEGREES)
    zoom = 1 + SCALE * parameters[:, 1]
    shift = 2 * TRANSLATION * parameters[:, 2:4]  # grid_sample's coordinates run from -1 to 1
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = [cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]]
    return torch.stack([*matrix, 1 + CONTRAST * parameters[:, 4], BRIGHTNESS * parameters[:, 5]], dim=1)


def augment(images: torch.Tensor, prepared: torch.Tensor, *, side: int) -> torch.Tensor:
    """Change each image by its row of `prepare_augmentation` and resample it to side x side pixels in the same step.

    images: float [B, 1, R, R] in [0, 1]. Returns float [B, 1, side, side], which may exceed [0, 1]. Images are not
    mirrored, because the heart lies on the left. Pixels from beyond the edge repeat the edge, so that no black wedge
    marks an augmented image.
    """
    grid = F.affine_grid(prepared[:, :6].view(-1, 2, 3), [len(images), 1, side, side], align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = prepared[:, 6].view(-1, 1, 1, 1), prepared[:, 7].view(-1, 1, 1, 1)
    mean = moved.mean(dim=(2, 3), keepdim=True)
    return torch.addcmul(mean - mean * contrast + brightness, moved, contrast)


def enlarge(images: torch.Tensor, *, side: int) -> torch.Tensor:
    """Resample to side x side pixels (bilinear), as `augment` does with all parameters at 0."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
