"""Convolution weights that meet only padding get a gradient of 0, as the formula says, whatever oneDNN leaves there."""

import pytest
import torch
from torch import nn

from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import make_learner
from acuity.objectives.training.padding_gradients import zero_padding_gradients
from acuity.objectives.training.prediction import compute_logits


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (5, 2, 2, 1), (3, 1, 2, 2)]
)
def test_gradients_stay_those_of_autograd(size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    """In float64 without oneDNN the true gradient is known; only positions where it is 0 are masked."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding, dilation=dilation).double()
    images = torch.rand(4, 2, size, size, dtype=torch.float64) + 1  # no product is 0 but with padding
    convolution(images).sum().backward()
    assert convolution.weight.grad is not None
    true = convolution.weight.grad.clone()
    masked: list[torch.Tensor] = []
    convolution.weight.grad = None
    zero_padding_gradients(convolution, lambda: convolution(images))
    for hook in (convolution.weight._backward_hooks or {}).values():
        masked.append(hook(torch.ones_like(convolution.weight)))
    convolution(images).sum().backward()
    assert torch.equal(convolution.weight.grad, true)
    if masked:
        assert torch.equal(masked[0] == 0, true == 0)
    else:
        assert (true != 0).all()


def test_bf16_training_on_a_cpu_keeps_weights_finite_where_a_kernel_exceeds_the_feature_map() -> None:
    settings = Hyperparameters(
        architecture="test_resnet", resolution=16, batch_size=8, learning_rate=0.01, epochs=1, precision="bf16"
    )
    for seed in range(5):
        torch.manual_seed(seed)
        learner = make_learner(settings, total_steps=4, device=torch.device("cpu"))
        garbage = [torch.full((165_888,), float("nan")) for _ in range(20)]
        del garbage  # freed memory, as a kernel that does not initialise its output finds it
        learner.network.train()
        compute_logits(learner, torch.rand(8, 1, 16, 16)).sum().backward()
        gradient = dict(learner.network.named_parameters())["layer4.0.conv1.weight"].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        gradient[:, :, 1, 1] = 0
        assert not gradient.any()
