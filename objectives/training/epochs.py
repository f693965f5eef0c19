"""The finished epochs of one training: validation, checkpoint and report after each of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.metrics import accuracy, auc, average_precision, youden_threshold
from acuity.objectives.training.checkpoint import Checkpoint
from acuity.objectives.training.checkpoint_writer import CheckpointWriter
from acuity.objectives.training.interface import Diverged, Hyperparameters, Interrupted, LabelledImages, Outcome
from acuity.objectives.training.loader import BatchLoader
from acuity.objectives.training.prediction import Predictor, predict_batches, probabilities


@dataclass(eq=False)
class Epochs:
    """The finished epochs of a training; `finish` adds one."""

    predictor: Predictor
    hyperparameters: Hyperparameters
    data: LabelledImages
    validation: BatchLoader
    """Loads the validation images."""
    identity: str
    """As in `Checkpoint`."""
    aucs: list[float]
    """Validation AUC of each finished epoch, first those of the checkpoint."""
    seconds_before: float
    """Training time of earlier processes."""
    started: float
    """time.perf_counter() at the start of this process's training."""
    writer: CheckpointWriter
    report: Callable[[int, float], bool]
    should_stop: Callable[[], bool]
    scores: NDArray[np.float64] | None = None
    """Probabilities of the validation images after the last epoch of this process."""
    stopped: bool = False
    """Whether report() ended the training before its last epoch."""

    def __post_init__(self) -> None:
        self.resumed = len(self.aucs)

    @property
    def are_over(self) -> bool:
        """Whether no epoch must follow."""
        return self.stopped or len(self.aucs) >= self.hyperparameters.epochs

    def repeat_reports(self) -> None:
        """Report the epochs of the checkpoint again. Only the last of these reports can end the training."""
        requests = [self.report(epoch, value) for epoch, value in enumerate(self.aucs, start=1)]
        self.stopped = bool(requests) and requests[-1] and not self.are_over

    def finish(self, network: dict[str, Any], *, optimiser: dict[str, Any], scheduler: dict[str, Any]) -> None:
        """Validate the network after an epoch, keep its state and report its AUC.

        network: the state dict. Raises Interrupted within a batch after should_stop(), and then the epoch does not
        count; Diverged for a prediction of NaN.
        """
        epoch = len(self.aucs) + 1
        self.scores = self._predict(epoch)
        self.aucs.append(auc(self._targets, self.scores))
        is_last = epoch >= self.hyperparameters.epochs
        if is_last:
            self._write_last(network, seconds=self._seconds)
        else:
            self.writer.keep(Checkpoint(self.identity, list(self.aucs), self._seconds, network, optimiser, scheduler))
        self.stopped = self.report(epoch, self.aucs[-1]) and not is_last

    def complete(self, network: dict[str, Any]) -> None:
        """Validate the network of a checkpoint after which no epoch followed."""
        if self.scores is not None:
            return
        self.scores = self._predict(len(self.aucs))
        if not self.stopped:  # earlier attempts' checkpoints are removed when the trial ends
            self._write_last(network, seconds=self.seconds_before)

    def outcome(self, *, images_per_second: float, peak_memory_mib: float) -> Outcome:
        """The result of the training, after `complete`."""
        assert self.scores is not None
        patients = self.data.patients[self.data.validation]
        return Outcome(
            auc=auc(self._targets, self.scores),
            auc_se=auc_standard_error(self._targets, self.scores, patients),
            accuracy=accuracy(self._targets, self.scores, threshold=youden_threshold(self._targets, self.scores)),
            average_precision=average_precision(self._targets, self.scores),
            epochs=len(self.aucs),
            resumed_epochs=self.resumed,
            seconds=self._seconds,
            images_per_second=images_per_second,
            peak_memory_mib=peak_memory_mib,
            stopped=self.stopped,
            scores=self.scores,
        )

    def _predict(self, epoch: int) -> NDArray[np.float64]:
        """Probability of the finding for each validation image."""
        logits = []
        for batch in predict_batches(self.predictor, self.validation, num_images=len(self.data.validation)):
            logits.append(batch)
            if self.should_stop():
                raise Interrupted
        scores = probabilities(logits)
        if np.isnan(scores).any():
            function = self.hyperparameters.train
            advice = f", or correct {function}" if function else ""
            raise Diverged(f"a prediction became NaN after epoch {epoch}: lower the learning rate{advice}")
        return scores

    def _write_last(self, network: dict[str, Any], *, seconds: float) -> None:
        """Write the network alone: nothing is trained from this checkpoint any more."""
        self.writer.write_last(Checkpoint(self.identity, list(self.aucs), seconds, network, {}, {}))

    @property
    def _targets(self) -> NDArray[np.float32]:
        return self.data.targets[self.data.validation]

    @property
    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started


def derive_seed(seed: int, *, epoch: int) -> int:
    """Seed of an epoch (0: of the network's random weights), so that a resumed training needs no generator's state."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
