"""A trial's reports to its study: sent each epoch, kept through an outage, and the pruner's answer."""

import logging
from collections.abc import Container

import optuna

from storage.database import OUTAGES
from study.station import Station

logger = logging.getLogger(__name__)


class Reporter:
    """The callable that training reports to: (epoch, AUC) -> stop?

    prunable: after which epochs the pruner is asked; none for the first trials of a resolution, which run to their end
    whatever the others did.
    """

    def __init__(self, station: Station, trial: optuna.Trial, *, prunable: Container[int]) -> None:
        self._station = station
        self._trial = trial
        self._prunable = prunable
        self._unsent: list[tuple[int, float]] = []

    def __call__(self, epoch: int, auc: float) -> bool:
        self._unsent.append((epoch, auc))
        try:
            self._send()
            prune = epoch in self._prunable and bool(self._trial.should_prune())
        except OUTAGES as error:
            # Training is worth more than a report that is late; the storage is waited for when the trial ends.
            self._station.contact.lost()
            logger.warning("%d reports kept until the database is back: %s", len(self._unsent), type(error).__name__)
            return False
        self._station.contact.seen()
        return prune

    def send_rest(self) -> None:
        """Send what an outage has kept, waiting for the storage as long as the experiment's patience lasts."""
        self._station.patiently(self._send)

    def _send(self) -> None:
        while self._unsent:
            epoch, auc = self._unsent[0]
            # Through the trial, which keeps what was reported: its pruner asks no storage.
            self._trial.report(auc, epoch)
            self._unsent.pop(0)
