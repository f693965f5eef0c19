"""The trackers of an experiment, and what each trial and verdict sends to all of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from acuity.objectives.training.own_function import is_own_function
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.tracking.interface import TrackedRun, Tracker, Value
from acuity.study.tracking.sending import Sender

_SENT = (
    "accuracy", "attempt", "auc_se", "average_precision", "batch_cap", "batch_size", "device", "epochs",
    "feasible_batch_size", "images_per_second", "origin", "out_of_memory", "peak_memory_mib", "precision",
    "resumed_epochs", "seconds", "seed", "threads",
)  # fmt: skip
"""A trial's attributes that are sent. Not `reason`: the message of an error may have a file's name in it."""
_VERDICT = ("auc", "auc_low", "auc_high")


class Trackers:
    """Sends the trials of a process to the trackers, one trial after another. Every call returns at once."""

    def __init__(self, senders: Sequence[Sender] = ()) -> None:
        self._senders = senders
        self._is_open = False

    def start(self, run: TrackedRun) -> None:
        """Begin a run for a trial."""
        self._is_open = True
        for sender in self._senders:
            sender.put(lambda tracker: tracker.start(run), begins=True)

    def report(self, epoch: int, auc: float) -> None:
        """Send the validation AUC of an epoch."""
        self._report(epoch, {"auc": auc})

    def record(self, attributes: Mapping[str, Any]) -> None:
        """Send those of a trial's attributes that identify neither a file nor a patient."""
        sent = {key: value for key, value in attributes.items() if key in _SENT and isinstance(value, Value)}
        if sent:
            self._put(lambda tracker: tracker.record(sent))

    def end(self, state: str, *, reason: str | None = None) -> None:
        """End the trial's run, unless it has ended. reason: of a pruned trial, in words of this program."""
        if not self._is_open:
            return
        self._is_open = False
        if reason is not None:
            self._put(lambda tracker: tracker.record({"reason": reason}))
        self._put(lambda tracker: tracker.end(state))

    def send_verdicts(self, experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> None:
        """Send a run of the verdicts: per label the sentence, and the AUC with its interval at each resolution."""
        run = TrackedRun(
            experiment=experiment.name,
            label=None,
            name="verdicts",
            kind="verdicts",
            parameters={"margin": experiment.confirm.margin},
        )
        self.start(run)
        for result in results:
            label = result["label"]
            self._put(_recording({f"{label} verdict": result["smallest_adequate"]["sentence"]}))
            for at in result["by_resolution"]:
                self._report(at["resolution"], {f"{label} {key}": at[key] for key in _VERDICT})
        self.end("complete")

    def close(self, *, timeout_s: float) -> None:
        """Wait until everything is sent, for up to timeout_s per tracker."""
        for sender in self._senders:
            sender.close(timeout_s=timeout_s)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        finite = {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}
        self._put(lambda tracker: tracker.report(step, finite))

    def _put(self, call: Callable[[Tracker], None]) -> None:
        for sender in self._senders:
            sender.put(call)


NO_TRACKERS = Trackers()


def open_trackers(experiment: Experiment) -> Trackers:
    """Start a thread for each tracker of the experiment. The clients are imported there."""
    return Trackers([Sender(name, open_tracker) for name, open_tracker in _trackers(experiment).items()])


def check_trackers(experiment: Experiment) -> None:
    """UsageError where the client of a tracker is not installed here. A worker without it only warns."""
    tracking = experiment.tracking
    for key, package in (("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboard")):
        if getattr(tracking, key) is not None and find_spec(package) is None:
            raise UsageError(
                f"tracking.{key} is given, but the package {package} is not installed here: run "
                f"`pip install acuity-hpo[tracking-{key}]`, or leave tracking.{key} out"
            )


def tracked_trial(
    experiment: Experiment, *, label: str, number: int, is_confirmation: bool, parameters: Mapping[str, Any]
) -> TrackedRun:
    """The run of a trial. parameters: of the search space; those of [training] are added, without paths."""
    training = experiment.training
    kind = "confirmation" if is_confirmation else "search"
    fixed: dict[str, Value] = {
        "epochs": training.epochs,
        "precision": training.precision,
        "weight_decay": training.weight_decay,
        "initial_weights": "timm" if training.pretrained else "file" if training.weights else "random",
    }
    if is_own_function(parameters["architecture"]):
        fixed["initial_weights"] = "its function's"
    if training.train is None:
        fixed["augment"] = training.augmentation or training.augment
        fixed["loss"] = training.loss or "weighted cross entropy"
    else:
        fixed["train"] = training.train
    if training.network_input is not None:
        fixed["network_input"] = training.network_input
    return TrackedRun(
        experiment=experiment.name,
        label=label,
        name=f"{label} {'confirmation' if is_confirmation else 'trial'} {number}",
        kind=kind,
        parameters=dict(parameters) | fixed,
    )


def _recording(attributes: dict[str, Value]) -> Callable[[Tracker], None]:
    return lambda tracker: tracker.record(attributes)


def _trackers(experiment: Experiment) -> dict[str, Callable[[], Tracker]]:
    """Name for messages -> how to open it, for each tracker that the experiment names."""
    tracking = experiment.tracking
    found: dict[str, Callable[[], Tracker]] = {}
    if tracking.mlflow is not None:
        found[f"MLflow at {tracking.mlflow}"] = lambda: _open_mlflow(str(tracking.mlflow))
    if tracking.wandb is not None:
        found["Weights & Biases"] = lambda: _open_wandb(str(tracking.wandb))
    if tracking.tensorboard is not None:
        found[f"TensorBoard's folder {tracking.tensorboard}"] = lambda: _open_tensorboard(experiment)
    return found


def _open_mlflow(uri: str) -> Tracker:
    from acuity.study.tracking.mlflow_runs import MlflowRuns

    return MlflowRuns(uri)


def _open_wandb(project: str) -> Tracker:
    from acuity.study.tracking.wandb_runs import WandbRuns

    return WandbRuns(project)


def _open_tensorboard(experiment: Experiment) -> Tracker:
    from acuity.study.tracking.tensorboard_runs import TensorboardRuns

    assert experiment.tracking.tensorboard is not None
    return TensorboardRuns(experiment.tracking.tensorboard)
