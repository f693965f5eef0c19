"""The reference is chosen on validation patients: the highest mean AUC over seeds, and the smallest of equals."""

import optuna
import pytest
from optuna.trial import FrozenTrial

from acuity.study.confirmation.nomination import Nomination, Nominee
from acuity.study.confirmation.plan import TrainedFinalist
from acuity.study.confirmation.protocol import _label_protocol


def chosen(resolution: int, aucs: list[float]) -> TrainedFinalist:
    def run(auc: float, seed: int) -> FrozenTrial:
        trial = optuna.trial.create_trial(value=auc, user_attrs={"seed": seed})
        trial._trial_id = seed
        return trial

    parameters = {"architecture": "test_resnet", "learning_rate": 0.01, "resolution": resolution}
    nominee = Nominee(
        number=0,
        resolution=resolution,
        auc=0.9,
        parameters=parameters,
        batch_size=32,
        feasible_batch_size=64,
        seconds=1.0,
    )
    return TrainedFinalist(nominee, tuple(run(auc, seed) for seed, auc in enumerate(aucs)))


@pytest.mark.parametrize(
    ("aucs", "reference"),
    [
        ({32: [0.70, 0.71, 0.72], 64: [0.90, 0.60, 0.60], 128: [0.71, 0.72, 0.71]}, 128),
        ({32: [0.8, 0.8, 0.8], 64: [0.8, 0.8, 0.8]}, 32),
    ],
)
def test_reference_has_the_highest_mean_over_the_seeds(aucs: dict[int, list[float]], reference: int) -> None:
    finalists = {resolution: chosen(resolution, runs) for resolution, runs in aucs.items()}
    nomination = Nomination("Nodule", (), trials=dict.fromkeys(aucs, 12), skipped=())
    protocol = _label_protocol(nomination, finalists, "nih/Nodule/confirm 3")
    assert protocol.reference == reference
    assert [finalist.resolution for finalist in protocol.finalists] == sorted(aucs)
    assert [run.seed for run in protocol.finalists[0].runs] == [0, 1, 2]
