"""The user's function in place of all training steps: what it is given, and what it must do."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.device.memory import is_device_error
from acuity.objectives.errors import first_line
from acuity.objectives.training.augmentation import enlarge
from acuity.objectives.training.epochs import Epochs, derive_seed
from acuity.objectives.training.interface import Interrupted, LabelledImages
from acuity.objectives.training.learner import scaled_rate
from acuity.objectives.training.own_function import OwnFunctionError, load_function
from acuity.objectives.training.prediction import Predictor, compute_logits

_PLAIN = (type(None), bool, int, float, str, bytes)
_CONTAINERS = (dict, OrderedDict, Counter, list, tuple)


class OwnTraining(Protocol):
    """Train the epochs that are left with the user's function; returns the speed of its steps in images/s.

    state: as the function gave it to report() after the last finished epoch. Raises OwnFunctionError where the function
    raises or breaks its protocol, Interrupted where it returned because it must stop, and errors of `Epochs.finish`.
    """

    def __call__(self, epochs: Epochs, *, seed: int, positive_weight: float, state: dict[str, Any] | None) -> float: ...


class TrainingImages(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The training images of a trial with their targets, for a `torch.utils.data.DataLoader`.

    An item is an image, float32 [1, R, R] in [0, 1], and its target, float32 [] (0 or 1), both on the CPU.
    """

    def __init__(self, data: LabelledImages) -> None:
        self._pixels: NDArray[np.uint8] = np.asarray(data.images)
        self._rows = data.training
        self.targets = torch.from_numpy(data.targets[data.training])
        """float32 [N], such as for a sampler."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The items at these positions; a DataLoader reads a batch with one call."""
        pixels = torch.from_numpy(self._pixels[self._rows[list(positions)]])
        images = pixels.unsqueeze(1).float().div_(255)
        return list(zip(images, self.targets[list(positions)], strict=True))


class TrainingTask:
    """What the user's function knows of its trial, and how it reports: train(network, task) -> None."""

    architecture: str
    """The network's name in the experiment file."""
    resolution: int
    """Pixels a side of the images."""
    batch_size: int
    """Images of a training step. After out of memory, the function is called again with half of it."""
    learning_rate: float
    """Searched at a batch size of 128, and scaled by sqrt(batch_size / 128)."""
    weight_decay: float
    epochs: int
    """Number of epochs of the whole training."""
    finished_epochs: int
    """Epochs that are in the network already. More than 0 where the function continues a training."""
    state: dict[str, Any] | None
    """The state given to report() after epoch finished_epochs, with its tensors on the CPU; None at the start."""
    seed: int
    """Seed of the training. torch's generators are seeded before the call and after each epoch."""
    precision: str
    """"fp32", "tf32" or "bf16". The network computes in it, so a trainer needs no setting."""
    device: torch.device
    """The network's device, which must not change."""
    images: TrainingImages
    positive_weight: float
    """Weight of a positive image in the built-in loss."""

    def __init__(
        self,
        name: str,
        network: torch.nn.Module,
        epochs: Epochs,
        *,
        seed: int,
        positive_weight: float,
        state: dict[str, Any] | None,
    ) -> None:
        hyperparameters = epochs.hyperparameters
        self.architecture = hyperparameters.architecture
        self.resolution = hyperparameters.resolution
        self.batch_size = hyperparameters.batch_size
        self.learning_rate = scaled_rate(hyperparameters)
        self.weight_decay = hyperparameters.weight_decay
        self.epochs = hyperparameters.epochs
        self.finished_epochs = len(epochs.aucs)
        self.state = state
        self.seed = seed
        self.precision = hyperparameters.precision
        self.device = epochs.predictor.device
        self.images = TrainingImages(epochs.data)
        self.positive_weight = positive_weight
        self._name = name
        self._network = network
        self._epochs = epochs
        self._shapes = _shapes(epochs.predictor.network.state_dict())
        self._must_return = False
        self._failure: BaseException | None = None  # of report()
        self._report_s = 0.0

    def should_stop(self) -> bool:
        """Whether the worker must stop. The function then returns within 5 s, best after the present step."""
        return self._epochs.should_stop()

    def report(self, epoch: int, state: Mapping[str, Any] | None = None) -> bool:
        """Validate the network after an epoch, counted from 1. Returns True where the function must return.

        Acuity computes the validation AUC with the network as it is now. state: what the function needs to continue
        after this epoch, such as the optimiser's state dict, as tensors and plain values. The network's weights are
        kept anyway. The training modes of the network's modules stay as they are.
        """
        began = time.perf_counter()
        try:
            self._report(epoch, {} if state is None else state)
        except Interrupted:
            self._must_return = True
        except BaseException as error:
            self._failure = error  # the function must not hide it
            raise
        self._report_s += time.perf_counter() - began
        return self._must_return

    def _take_failure(self) -> BaseException:
        """The error of report(), kept here no longer: with its traceback it is a cycle with this object."""
        assert self._failure is not None
        failure, self._failure = self._failure, None
        return failure

    def _report(self, epoch: int, state: Mapping[str, Any]) -> None:
        if self._must_return:
            raise self._mistake(f"called report() for epoch {epoch} after report() was true, must return then")
        if epoch != len(self._epochs.aucs) + 1:
            raise self._mistake(
                f"reported epoch {epoch} after epoch {len(self._epochs.aucs)}, must report each epoch once, from "
                "finished_epochs + 1"
            )
        if not isinstance(state, Mapping):
            raise self._mistake(f"gave report() a {type(state).__name__} as state, must be a dict")
        place = _find_unstorable(dict(state), "state")
        if place is not None:
            raise self._mistake(
                f"gave report() {place}, must be a tensor, a number, a text, or a dict, list or tuple of them"
            )
        network = self._epochs.predictor.network.state_dict()
        self._check(network)
        modes = [(module, module.training) for module in self._network.modules()]
        try:
            self._epochs.finish(network, optimiser=dict(state), scheduler={})
        finally:
            for module, training in modes:
                module.training = training
        self._must_return = self._epochs.are_over
        torch.manual_seed(derive_seed(self.seed, epoch=epoch + 1))

    def _check(self, network: dict[str, torch.Tensor]) -> None:
        shapes = _shapes(network)
        if shapes != self._shapes:
            changed = sorted({name for name, _ in shapes.items() ^ self._shapes.items()})
            raise self._mistake(
                f"changed the tensors of the network ({changed[0]} first), must keep their names and shapes: change "
                "the function of the architecture instead"
            )
        devices = {tensor.device.type for tensor in network.values()}
        if devices - {self.device.type}:
            raise self._mistake(
                f"left the network on {', '.join(sorted(devices))} at report(), must be on {self.device.type}"
            )

    def _mistake(self, text: str) -> OwnFunctionError:
        return OwnFunctionError(f'train "{self._name}" {text}')


class _ImagesToLogits(torch.nn.Module):
    """The network as the user's function trains it: images, float [B, 1, R, R] in [0, 1], to logits, float32 [B].

    It enlarges and normalises the images and computes in the experiment's precision, as for the validation images.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network = predictor.network
        self._predictor = predictor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return compute_logits(self._predictor, enlarge(images, side=self._predictor.side))


def load_training(name: str) -> OwnTraining:
    """Load the user's function. InputError where there is none."""
    return partial(_train, name, load_function(name))


def _train(
    name: str,
    function: Callable[[torch.nn.Module, TrainingTask], Any],
    epochs: Epochs,
    *,
    seed: int,
    positive_weight: float,
    state: dict[str, Any] | None,
) -> float:
    network = _ImagesToLogits(epochs.predictor).train()
    task = TrainingTask(name, network, epochs, seed=seed, positive_weight=positive_weight, state=state)
    finished = task.finished_epochs
    torch.manual_seed(derive_seed(seed, epoch=finished + 1))
    began = time.perf_counter()
    try:
        function(network, task)
    except (Exception, SystemExit) as error:  # the user's code; Lightning ends with SystemExit on SIGTERM
        if task._failure is not None:
            raise task._take_failure() from None
        if isinstance(error, SystemExit) and task.should_stop():
            raise Interrupted from error
        if is_device_error(error):
            raise
        raise OwnFunctionError(f'train "{name}" raised {type(error).__name__}: {first_line(error)}') from error
    if task._failure is not None:
        raise task._take_failure()
    if not epochs.are_over:
        if task.should_stop():
            raise Interrupted
        raise OwnFunctionError(
            f'train "{name}" returned after {len(epochs.aucs)} of {task.epochs} epochs, must call report() after each '
            "epoch and return only when report() or should_stop() is true"
        )
    steps_s = time.perf_counter() - began - task._report_s
    return (len(epochs.aucs) - finished) * len(task.images) / max(steps_s, 1e-9)


def _find_unstorable(value: Any, place: str) -> str | None:
    """Describe the first part of a state that a checkpoint cannot hold, None without any."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return None
    if type(value) not in _CONTAINERS:
        return f"{place} with a {type(value).__name__}"
    if isinstance(value, dict):
        parts = [(f"{place}[{key!r}]", part) for key, part in value.items()]
        parts += [(f"{place} as a key", key) for key in value]
    else:
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(value)]
    return next((found for where, part in parts if (found := _find_unstorable(part, where)) is not None), None)


def _shapes(network: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.items()}
