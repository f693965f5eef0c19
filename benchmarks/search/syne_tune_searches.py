"""Adapts Syne Tune's schedulers, at their defaults, to the replay: one for each label."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from record_curves import ARCHITECTURES, BATCH_SIZES, EPOCHS, LEARNING_RATES, RESOLUTIONS
from surrogate import Configuration
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, loguniform
from syne_tune.optimizer.baselines import ASHA, BOHB
from syne_tune.optimizer.scheduler import SchedulerDecision, TrialScheduler

_SPACE = {
    "resolution": choice(list(RESOLUTIONS)),
    "architecture": choice(list(ARCHITECTURES)),
    "batch_size": choice(list(BATCH_SIZES)),
    "learning_rate": loguniform(LEARNING_RATES[0], LEARNING_RATES[-1]),
}
_METRIC: dict[str, Any] = {"metric": "auc", "do_minimize": False, "time_attr": "epoch", "max_t": EPOCHS}


class SyneTuneSchedulers:
    """One scheduler per label. The label with the fewest trials is asked next, as Acuity's workers do."""

    def __init__(self, labels: Sequence[str], make: Callable[[int], TrialScheduler], *, seed: int) -> None:
        np.random.seed(seed)  # the schedulers draw configurations from it, whatever their random_seed
        self.schedulers = {label: make(position) for position, label in enumerate(labels)}
        self.asked = dict.fromkeys(labels, 0)
        self.running: dict[int, tuple[str, Trial]] = {}

    def ask(self) -> tuple[int, str, Configuration] | None:
        label = min(self.asked, key=self.asked.__getitem__)
        number = sum(self.asked.values())
        self.asked[label] += 1
        suggestion = self.schedulers[label].suggest()
        trial = Trial(number, suggestion.config, datetime.now())
        self.schedulers[label].on_trial_add(trial)
        self.running[number] = (label, trial)
        return number, label, Configuration(**suggestion.config)

    def report(self, number: int, epoch: int, auc: float) -> bool:
        if epoch == EPOCHS:
            return False
        label, trial = self.running[number]
        decision = self.schedulers[label].on_trial_result(trial, {"auc": auc, "epoch": epoch})
        return decision == SchedulerDecision.STOP

    def tell(self, number: int, auc: float | None) -> None:
        label, trial = self.running.pop(number)
        if auc is None:
            self.schedulers[label].on_trial_remove(trial)
        else:
            self.schedulers[label].on_trial_complete(trial, {"auc": auc, "epoch": EPOCHS})


def asha(labels: Sequence[str], seed: int) -> SyneTuneSchedulers:
    """Random configurations, successive halving."""
    return SyneTuneSchedulers(labels, lambda position: ASHA(_SPACE, random_seed=seed + position, **_METRIC), seed=seed)


def bohb(labels: Sequence[str], seed: int) -> SyneTuneSchedulers:
    """Kernel densities as in BOHB (by default a label's first 33 trials are random), successive halving."""
    return SyneTuneSchedulers(labels, lambda position: BOHB(_SPACE, random_seed=seed + position, **_METRIC), seed=seed)
