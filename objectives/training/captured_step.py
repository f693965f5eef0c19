"""A training step as one CUDA graph: the host starts it by one call instead of several hundred.

A graph repeats kernels with the arguments of their capture, so everything that changes from step to step is a tensor
on the device: the number of the step, the positions of its images, their augmentation and the factors of the optimiser.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim.adamw import adamw

from acuity.objectives.device.memory import is_out_of_memory
from acuity.objectives.errors import first_line
from acuity.objectives.training.augmentation import NUM_PREPARED, prepare_augmentation
from acuity.objectives.training.learner import Learner, batch_loss
from acuity.objectives.training.loader import BatchLoader, ResidentImages

CaptureSetting = Literal["auto"] | bool
"""Whether steps are captured; "auto" captures where the launches of a step take longer than its arithmetic."""
# 512 images of 64 px, 41 of 224 px. An estimate: above it the arithmetic of resnet34 on an H100 (about 4 ms) takes as
# long as the launches of an uncaptured step. Not measured on a GPU.
_MAX_PIXELS = 2**21
_MIN_STEPS = 100  # warm-up and capture take about as long as these steps save
_BETA1 = 0.9  # of the optimiser's kernel, which takes a number of the host; see `_factors`
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """A captured step and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: "_Inputs"
    learner: Learner


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Inputs of all steps of an epoch, on the device."""

    images: torch.Tensor
    """uint8 [N, 1, R, R]."""
    targets: torch.Tensor
    """float32 [N]."""
    positive_weight: torch.Tensor
    batches: torch.Tensor
    """int64 [steps, B], positions among the images."""
    augmentation: torch.Tensor | None
    """float32 [N, 8], prepared."""
    factors: torch.Tensor
    """float32 [steps, 3 + groups], as `_factors` makes them."""
    step: torch.Tensor
    """int64 [1], row of the next step."""
    finite: torch.Tensor
    """bool [], whether all losses of the epoch so far are finite."""


def capture_training(
    learner: Learner,
    loader: BatchLoader,
    *,
    setting: CaptureSetting,
    targets: torch.Tensor,
    batch_shape: tuple[int, int],
    epochs: int,
    augment: bool,
    positive_weight: float,
) -> CapturedStep | None:
    """Capture a training step if the setting asks for it and the device can; None otherwise, and one line in the log.

    targets: float32 [N]. batch_shape: steps of an epoch and images of a batch. epochs: still to train. Leaves network,
    optimiser and schedule as they were, but not the state of torch's random numbers. If memory runs out, that error is
    raised, as by an uncaptured step.
    """
    reason = _reason_against(learner, loader, setting=setting, batch_shape=batch_shape, epochs=epochs)
    if reason is not None:
        if setting is True or (setting == "auto" and _has_own_part(learner)):
            level = logging.WARNING if setting is True else logging.INFO
            logger.log(level, "training steps are not captured as a CUDA graph: %s", reason)
        return None
    assert isinstance(loader, ResidentImages)
    device, steps = learner.device, batch_shape[0]
    inputs = _Inputs(
        images=loader.images,
        targets=targets.to(device),
        positive_weight=torch.tensor(positive_weight, device=device),
        batches=torch.zeros(batch_shape, dtype=torch.int64, device=device),
        augmentation=torch.zeros(len(targets), NUM_PREPARED, device=device) if augment else None,
        factors=torch.zeros(steps, 3 + len(learner.optimiser.param_groups), device=device),
        step=torch.zeros(1, dtype=torch.int64, device=device),
        finite=torch.ones((), dtype=torch.bool, device=device),
    )
    learner.network.train()
    failures: list[Exception] = []
    try:
        _warm_up(learner, inputs)
        graph = _capture(learner, inputs, failures)
    except Exception as error:  # what cannot be captured raises errors of many types
        failures.append(error)
    if failures:
        learner.optimiser.zero_grad()  # the gradients lie in the memory of the graph
        try:
            if is_out_of_memory(failures[0]):
                raise failures[0]
            logger.warning("training steps are not captured as a CUDA graph: %s", first_line(failures[0]))
        finally:
            failures.clear()  # with the tracebacks it is a cycle, which would keep the tensors of the step
        return None
    return CapturedStep(graph, inputs, learner)


def replay_batches(
    captured: CapturedStep, *, batches: torch.Tensor, augmentation: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Take one captured step for each row of batches, which an epoch has; yields whether all losses are finite so far.

    batches and augmentation: as `train_batches` takes them. The result is a tensor on the device that later steps
    change.
    """
    inputs = captured.inputs
    captured.learner.network.train()
    inputs.batches.copy_(batches)
    if inputs.augmentation is not None:
        assert augmentation is not None
        inputs.augmentation.copy_(prepare_augmentation(augmentation))
    inputs.factors.copy_(_factors(captured.learner, steps=len(batches)))
    inputs.step.zero_()
    inputs.finite.fill_(value=True)
    for _ in range(len(batches)):
        captured.graph.replay()
        yield inputs.finite


def _reason_against(
    learner: Learner,
    loader: BatchLoader,
    *,
    setting: CaptureSetting,
    batch_shape: tuple[int, int],
    epochs: int,
) -> str | None:
    if setting is False:
        return "capture_steps is false"
    if learner.device.type != "cuda":
        return f"the device is {learner.device.type}, must be a GPU"
    if not isinstance(loader, ResidentImages):
        return "the images do not fit the GPU's memory for images"
    if _has_own_part(learner):
        return "the augmentation or the loss is the user's, and a graph would repeat its first call"
    if setting is True:
        return None
    steps, batch_size = batch_shape
    if batch_size * learner.side**2 > _MAX_PIXELS:
        return f"a batch has {batch_size * learner.side**2} pixels, must be at most {_MAX_PIXELS}"
    if epochs * steps < _MIN_STEPS:
        return f"{epochs * steps} steps are left, must be at least {_MIN_STEPS}"
    return None


def _has_own_part(learner: Learner) -> bool:
    return learner.own_augmentation is not None or learner.own_loss is not None


def _warm_up(learner: Learner, inputs: _Inputs) -> None:
    """Take steps on another stream and undo them: the first steps of a process initialise libraries.

    PyTorch's notes on CUDA graphs ask for it. The first step also creates the optimiser's state.
    """
    stream = torch.cuda.Stream(learner.device)
    compute_stream = torch.cuda.current_stream(learner.device)
    before = [(tensor, tensor.clone()) for tensor in _state(learner)]
    has_state = bool(learner.optimiser.state)
    stream.wait_stream(compute_stream)
    try:
        with torch.cuda.stream(stream):
            _loss(learner, inputs).backward()
            learner.optimiser.step()
            learner.optimiser.zero_grad()
            for _ in range(2):
                _take_step(learner, inputs)
                inputs.step.zero_()
                learner.optimiser.zero_grad()
    finally:
        compute_stream.wait_stream(stream)
        for tensor in _optimiser_state(learner):
            tensor.record_stream(compute_stream)  # allocated on the other one
        with torch.no_grad():
            if not has_state:
                for tensor in _optimiser_state(learner):
                    tensor.zero_()
            for tensor, value in before:
                tensor.copy_(value)


def _capture(learner: Learner, inputs: _Inputs, failures: list[Exception]) -> torch.cuda.CUDAGraph:
    """Capture a step; its first error goes to failures, since the end of a failed capture raises another one."""
    graph = torch.cuda.CUDAGraph()
    # With "global" an allocation in a thread that copies a checkpoint would end the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        try:
            _take_step(learner, inputs)
        except Exception as error:
            failures.append(error)
            raise
    return graph


def _state(learner: Learner) -> list[torch.Tensor]:
    """All tensors that a step changes."""
    network = learner.network
    return [*(p.detach() for p in network.parameters()), *network.buffers(), *_optimiser_state(learner)]


def _optimiser_state(learner: Learner) -> list[torch.Tensor]:
    return [tensor for state in learner.optimiser.state.values() for tensor in state.values()]


def _loss(learner: Learner, inputs: _Inputs) -> torch.Tensor:
    here = inputs.batches.index_select(0, inputs.step)[0]
    augmentation = None if inputs.augmentation is None else inputs.augmentation[here]
    return batch_loss(learner, inputs.images[here], inputs.targets[here], augmentation, inputs.positive_weight)


def _take_step(learner: Learner, inputs: _Inputs) -> None:
    loss = _loss(learner, inputs)
    loss.backward()
    with torch.no_grad():
        _update(learner.optimiser, inputs.factors.index_select(0, inputs.step)[0])
        inputs.finite.logical_and_(loss.isfinite())
        inputs.step.add_(1)


def _update(optimiser: torch.optim.Optimizer, factors: torch.Tensor) -> None:
    """Take AdamW's step with factors on the device in place of the numbers in param_groups."""
    before, after, rate, *decays = factors.unbind()
    for group, decay in zip(optimiser.param_groups, decays, strict=True):
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            continue
        state = [optimiser.state[parameter] for parameter in parameters]
        means = [tensors["exp_avg"] for tensors in state]
        torch._foreach_mul_(means, before)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, decay)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            means,
            [tensors["exp_avg_sq"] for tensors in state],
            [],
            [tensors["step"] for tensors in state],
            fused=True,
            capturable=True,
            amsgrad=False,
            beta1=_BETA1,
            beta2=group["betas"][1],
            lr=rate,
            weight_decay=0.0,  # `decay` has done it: the kernel would use the changed rate
            eps=group["eps"],
            maximize=False,
        )
        torch._foreach_mul_(means, after)


def _factors(learner: Learner, *, steps: int) -> torch.Tensor:
    """Advance the schedule by these steps; returns the factors of each: float32 [steps, 3 + groups].

    One-cycle moves AdamW's beta1, b here, but its fused kernel takes a constant number c. With s = (1 - c) / (1 - b),
    the kernel's mean c * m + (1 - c) * g of m = s * b / c * mean is s times the mean b * mean + (1 - b) * g that is
    wanted. So the mean is multiplied by s * b / c before the kernel and by 1 / s after it, and the learning rate by
    1 / s and by the ratio of the bias corrections. The last factors are 1 - rate * weight decay of each group.
    """
    rows = []
    groups = learner.optimiser.param_groups
    for _ in range(steps):
        rate, beta1 = groups[0]["lr"], groups[0]["betas"][0]
        number = learner.scheduler.last_epoch + 1
        scale = (1 - _BETA1) / (1 - beta1)
        kernel_rate = rate / scale * (1 - _BETA1**number) / (1 - beta1**number)
        decays = [1 - rate * group["weight_decay"] for group in groups]
        rows.append([scale * beta1 / _BETA1, 1 / scale, kernel_rate, *decays])
        learner.scheduler.step()
    return torch.tensor(rows)
