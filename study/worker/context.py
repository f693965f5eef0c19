"""State of a worker process, from its start to its end."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import optuna

from acuity.objectives.device.device import Device
from acuity.storage.checkpoints import Checkpoints
from acuity.storage.database import Database, retry_outages
from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import ImageSet
from acuity.study.registry.record import Registered
from acuity.study.tracking.trackers import NO_TRACKERS, Trackers
from acuity.study.worker.heartbeat import DatabaseContact

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class WorkerContext:
    """The database, the experiment, its images and the device of a worker."""

    database: Database
    registered: Registered
    studies: Mapping[str, optuna.Study]
    image_set: ImageSet
    device: Device
    checkpoints: Checkpoints
    contact: DatabaseContact
    stop: threading.Event
    """Set by SIGTERM and by Ctrl-C: the worker hands its trial back and exits."""
    trackers: Trackers = NO_TRACKERS

    @property
    def experiment(self) -> Experiment:
        return self.registered.experiment

    def retry_outages(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a storage function; retry it through an outage for up to storage_patience_min."""
        patience_s = 60 * self.experiment.workers.storage_patience_min

        def call() -> T:
            return function(*args, **kwargs)

        result = retry_outages(call, patience_s=patience_s, give_up=self.stop.is_set, on_outage=self.contact.lost)
        self.contact.seen()
        return result
