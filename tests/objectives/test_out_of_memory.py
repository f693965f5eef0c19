"""A step that ran out of memory leaves no tensors behind."""

import weakref

import torch

from acuity.objectives.device.memory import release_failed_step


class Activation:
    """Represents a tensor that a layer saved for its backward pass."""


class Save(torch.autograd.Function):
    """A layer that saves an activation."""

    @staticmethod
    def forward(ctx, images, activation):
        ctx.activation = activation
        return images.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient, None


class RunOut(torch.autograd.Function):
    """A layer with a backward pass that runs out of memory."""

    @staticmethod
    def forward(_, images):
        return images.clone()

    @staticmethod
    def backward(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def fail_in_one_of_two_branches() -> weakref.ref[Activation]:
    activation = Activation()
    images = torch.ones(2, requires_grad=True)
    saved = Save.apply(images * 2, activation)
    try:
        (saved.sum() + RunOut.apply(images).sum()).backward()
    except RuntimeError:
        return weakref.ref(activation)
    raise AssertionError("the backward pass did not fail")


def test_step_that_failed_in_one_branch_leaves_no_activation_of_the_other():
    activation = fail_in_one_of_two_branches()
    assert activation() is not None, "PyTorch releases it itself: release_failed_step is not needed on a CPU"
    release_failed_step(torch.device("cpu"))
    assert activation() is None
