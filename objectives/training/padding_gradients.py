"""Zero gradients of convolution weights that meet nothing but padding.

On a 1 x 1 feature map a 3 x 3 convolution multiplies eight of its nine positions with padding alone, and their gradient
is 0. oneDNN's bf16 backward pass on a CPU leaves uninitialised memory there for some shapes (seen with torch 2.14.1 in
`layer4.0.conv1` of timm's test_resnet at 16 px, 21 of 30 times not finite), so the weights become NaN. The network's
scores stay the same, but no two trainings are equal and the weights are useless at any other resolution.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def zero_padding_gradients(network: nn.Module, forward: Callable[[], object]) -> None:
    """From now on, each backward pass gives 0 for the positions of a kernel that meet only padding.

    forward: runs the network once, on an input of the size of its training.
    """
    sizes: dict[nn.Conv2d, tuple[int, int]] = {}

    def record(convolution: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        sizes[convolution] = (inputs[0].shape[-2], inputs[0].shape[-1])

    # A subclass that pads its input itself gives a gradient of 0 there.
    convolutions = [module for module in network.modules() if type(module) is nn.Conv2d]
    hooks = [convolution.register_forward_pre_hook(record) for convolution in convolutions]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()
            forward()
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    for convolution, size in sizes.items():
        if isinstance(convolution.padding, str):
            continue
        rows, columns = (_meets_image(convolution, axis, size[axis]) for axis in (0, 1))
        padding_only = ~(rows[:, None] & columns[None, :])
        if padding_only.any():
            convolution.weight.register_hook(partial(torch.Tensor.masked_fill, mask=padding_only, value=0.0))


def _meets_image(convolution: nn.Conv2d, axis: int, size: int) -> torch.Tensor:
    """For each position of the kernel along an axis, whether it lies on the image for some output."""
    kernel, stride = convolution.kernel_size[axis], convolution.stride[axis]
    padding, dilation = int(convolution.padding[axis]), convolution.dilation[axis]
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    position = torch.arange(outputs)[:, None] * stride - padding + torch.arange(kernel)[None, :] * dilation
    return ((position >= 0) & (position < size)).any(dim=0)
