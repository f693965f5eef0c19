"""Frozen protocols, uses of test patients, scores, and the views that show them."""

import json
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import text

from acuity.storage.confirmations import (
    count_test_uses,
    find_confirmation,
    find_scores,
    freeze_protocol,
    save_results,
    save_scores,
)
from acuity.storage.database import Database
from acuity.storage.experiments import delete_experiment, save_experiment


@pytest.fixture(autouse=True)
def _experiments(database: Database) -> None:
    for name in ("nih", "other"):
        save_experiment(database, name, {})


def freeze(database: Database, *, experiment: str = "nih", margin: float = 0.02, split: str = "split") -> int:
    protocol = {"margin": margin, "labels": [{"label": "Mass"}]}
    stored = freeze_protocol(
        database,
        experiment,
        protocol,
        split_sha256=f"{split} of {experiment}",
        test_patients_sha256=split,
        margin=margin,
        labels=["Mass"],
    )
    assert stored.protocol == protocol
    return stored.id


def results(auc: float) -> dict[str, Any]:
    best = {
        "resolution": 64, "architecture": "resnet34", "batch_size": 32, "feasible_batch_size": 64,
        "learning_rate": 1e-3, "auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.1, "split": "test", "seeds": 5,
    }  # fmt: skip
    verdict = {
        "verdict": "shown", "resolution": 32, "against": 64, "auc_difference": -0.001, "margin": 0.02, "p_value": 0.01,
        "sentence": "Mass needs 32 px",
    }  # fmt: skip
    by_resolution = [{"resolution": 64, "auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.1, "seeds": 5}]
    entry = {
        "label": "Mass", "best": best, "reference": {"resolution": 64, "auc": auc}, "smallest_adequate": verdict,
        "by_resolution": by_resolution,
    }  # fmt: skip
    return {"labels": [entry]}


def test_every_new_protocol_of_any_experiment_counts_as_a_use_of_the_split(database: Database) -> None:
    assert count_test_uses(database, "split") == 0
    first = freeze(database)
    assert freeze(database) == first
    assert count_test_uses(database, "split") == 1, "the same protocol counts once"
    freeze(database, margin=0.05)
    freeze(database, experiment="other")
    freeze(database, experiment="other", split="another split")
    assert count_test_uses(database, "split") == 3
    delete_experiment(database, "other")
    assert count_test_uses(database, "split") == 3, "uses of deleted experiments count"


def test_latest_confirmation_with_results_is_the_answer(database: Database) -> None:
    first, second = freeze(database), freeze(database, margin=0.05)
    assert find_confirmation(database, "nih") is None, "there are no results yet"
    save_results(database, first, results(0.8))
    save_results(database, second, results(0.7))
    assert find_confirmation(database, "nih").id == second  # type: ignore[union-attr]
    freeze(database)
    assert find_confirmation(database, "nih").id == first  # type: ignore[union-attr]


def test_first_scores_of_a_network_stay(database: Database) -> None:
    assert find_scores(database, trial_id=7, index_sha256="index") is None
    save_scores(database, "nih", trial_id=7, index_sha256="index", fold=None, seed=3, parquet=b"first")
    save_scores(database, "nih", trial_id=7, index_sha256="index", fold=None, seed=3, parquet=b"second")
    assert find_scores(database, trial_id=7, index_sha256="index") == b"first"
    assert find_scores(database, trial_id=7, index_sha256="external") is None
    delete_experiment(database, "nih")
    assert find_scores(database, trial_id=7, index_sha256="index") is None


def test_scores_are_replaced_on_request(database: Database) -> None:
    for trial_id in (7, 8):
        save_scores(database, "nih", trial_id=trial_id, index_sha256="external", fold=None, seed=3, parquet=b"stale")
    save_scores(database, "nih", trial_id=7, index_sha256="external", fold=None, seed=3, parquet=b"new", replace=True)
    assert find_scores(database, trial_id=7, index_sha256="external") == b"new"
    assert find_scores(database, trial_id=8, index_sha256="external") == b"stale"


def test_views_show_the_confirmed_numbers_of_the_answer(database: Database) -> None:
    save_results(database, freeze(database), results(0.8))
    with database.engine.connect() as connection:
        table = pd.read_sql(text("select * from acuity.best_resolution"), connection)
    (row,) = json.loads(table.to_json(orient="records"))
    assert (row["experiment"], row["label"], row["resolution"], row["split"]) == ("nih", "Mass", 64, "test")
    assert (row["verdict"], row["smallest_adequate"], row["reference"]) == ("shown", 32, 64)
    assert (row["auc"], row["seeds"], row["against"], row["p_value"]) == (0.8, 5, 64, 0.01)
