"""What a step that ran out of memory may not leave behind."""

import weakref

import torch

from acuity.objectives.device.memory import forget_failed_step


class Activation:
    """Stands for what a layer saved for its backward pass."""


class Save(torch.autograd.Function):
    """A layer that keeps an activation."""

    @staticmethod
    def forward(ctx, images, activation):
        ctx.activation = activation
        return images.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient, None


class RunOut(torch.autograd.Function):
    """A layer whose backward pass does not fit."""

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
    raise AssertionError("the backward pass was to fail")


def test_step_that_failed_in_one_branch_leaves_nothing_of_the_other():
    left = fail_in_one_of_two_branches()
    assert left() is not None, "PyTorch lets go by itself now: forget_failed_step has nothing left to do on a CPU"
    forget_failed_step(torch.device("cpu"))
    assert left() is None
