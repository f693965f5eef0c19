"""The forecast of the remaining time uses the durations of complete trials at every resolution."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from acuity.storage.database import Database
from acuity.study.config.loading import parse
from acuity.study.registry.register import register
from acuity.study.results.forecast import forecast_cost
from support.image_identities import unfiltered

RESOLUTIONS = CategoricalDistribution((32, 64))


def add(database: Database, label: str, resolution: int, seconds: float) -> None:
    study = optuna.load_study(study_name=f"nih/{label}", storage=database.storage)
    study.add_trial(
        create_trial(
            params={"resolution": resolution},
            distributions={"resolution": RESOLUTIONS},
            user_attrs={"seconds": seconds},
            value=0.7,
        )
    )


def test_hours_are_forecast_once_every_resolution_has_a_complete_trial(database: Database) -> None:
    experiment = parse(
        {
            "name": "nih",
            "labels": ["Nodule", "Mass"],
            "data": {"index": "/nih/Data_Entry.csv", "images": "/nih/images"},
            "search": {"resolutions": [32, 64], "architectures": ["test_resnet"], "trials": 20},
            "training": {"epochs": 1},
        },
        source="nih",
    )
    before = forecast_cost(database, experiment)
    assert (before.trials, before.worker_hours) == (40, None)
    register(database, experiment, unfiltered(), training_images=1000)
    add(database, "Nodule", 32, 10.0)
    add(database, "Mass", 32, 20.0)
    assert forecast_cost(database, experiment).worker_hours is None
    add(database, "Mass", 64, 45.0)
    cost = forecast_cost(database, experiment)
    assert cost.trials == 37
    assert cost.seconds_by_resolution == {32: 15.0, 64: 45.0}
    assert cost.worker_hours == pytest.approx(37 * 30 / 3600)
