"""Augmentation is the same at every image size, and plain enlargement with all parameters at 0."""

import pytest
import torch
import torch.nn.functional as F

from acuity.objectives.training.augmentation import (
    NUM_PARAMETERS,
    augment,
    draw_augmentation,
    enlarge,
    prepare_augmentation,
)


@pytest.fixture
def smooth_images():
    """Images without detail finer than 1/8 of the side, so that 32 px show the same as 64 px."""
    coarse = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("side", [64, 96, 100])
def test_augmentation_with_parameters_at_0_is_plain_enlargement(smooth_images, side):
    changed = augment(smooth_images, prepare_augmentation(torch.zeros(16, NUM_PARAMETERS)), side=side)
    assert torch.allclose(changed, enlarge(smooth_images, side=side), atol=1e-4)


def test_augmentation_is_the_same_at_every_resolution(smooth_images):
    parameters = draw_augmentation(16, generator=torch.Generator().manual_seed(1))
    halved = F.avg_pool2d(smooth_images, 2)
    prepared = prepare_augmentation(parameters)
    changed_first = F.avg_pool2d(augment(smooth_images, prepared, side=64), 2)
    changed_last = augment(halved, prepared, side=32)
    unchanged = (halved - changed_first).abs().mean()
    assert (changed_first - changed_last).abs().mean() < 0.15 * unchanged


def test_every_parameter_changes_the_image_and_none_mirrors_it(smooth_images):
    for parameter in range(NUM_PARAMETERS):
        parameters = torch.zeros(16, NUM_PARAMETERS)
        parameters[:, parameter] = 1
        changed = augment(smooth_images, prepare_augmentation(parameters), side=64)
        moved = (changed - smooth_images).abs().mean()
        mirrored = (changed - smooth_images.flip(3)).abs().mean()
        assert 0.005 < moved < 0.7 * mirrored


def test_drawn_parameters_fill_their_range_and_follow_the_generator():
    drawn = draw_augmentation(1000, generator=torch.Generator().manual_seed(2))
    assert drawn.shape == (1000, NUM_PARAMETERS)
    assert -1 <= drawn.min() < -0.99
    assert 0.99 < drawn.max() <= 1
    assert torch.equal(drawn, draw_augmentation(1000, generator=torch.Generator().manual_seed(2)))
