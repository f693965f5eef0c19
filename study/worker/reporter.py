"""Report a trial's AUC to its study after each epoch, and ask the pruner."""

import logging
from collections.abc import Container

import optuna

from acuity.storage.connection import OUTAGES
from acuity.study.worker.context import WorkerContext

logger = logging.getLogger(__name__)


class Reporter:
    """The callable that training reports to: (epoch, AUC) -> whether to stop.

    prunable: epochs after which the pruner is asked. Initial trials and retrainings have none: they are never pruned.
    Reports are kept during an outage and sent after it.
    """

    def __init__(self, context: WorkerContext, trial: optuna.Trial, *, prunable: Container[int]) -> None:
        self._context = context
        self._trial = trial
        self._prunable = prunable
        self._unsent: list[tuple[int, float]] = []

    def __call__(self, epoch: int, auc: float) -> bool:
        self._unsent.append((epoch, auc))
        self._context.trackers.report(epoch, auc)
        try:
            prune = self._send_and_ask() if epoch in self._prunable else self._send()
        except OUTAGES as error:
            # Training continues during an outage. The trial waits for the storage at its end.
            self._context.contact.lost()
            logger.warning("%d reports kept until the database is back: %s", len(self._unsent), type(error).__name__)
            return False
        self._context.contact.seen()
        return prune

    def send_rest(self) -> None:
        """Send the reports kept during an outage; wait for the storage for up to storage_patience_min."""
        self._context.retry_outages(self._send)

    def _send_and_ask(self) -> bool:
        with self._context.database.storage.finished_trials_with_reports(self._trial.study._study_id):
            self._send()
            return bool(self._trial.should_prune())

    def _send(self) -> bool:
        while self._unsent:
            epoch, auc = self._unsent[0]
            # The trial keeps its reports in memory, so that its pruner reads no storage.
            self._trial.report(auc, epoch)
            self._unsent.pop(0)
        return False
