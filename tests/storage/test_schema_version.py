"""The schema acuity is created once and refused at another version; its view shows every trial."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import text

from acuity.storage.database import Database, open_storage
from acuity.storage.errors import StorageError
from acuity.storage.experiments import read_experiment, save_experiment
from acuity.storage.schema.version import VERSION
from acuity.storage.studies import create_study
from acuity.storage.tables import OPTUNAS_TABLES

PARAMETERS = {"resolution": 64, "architecture": "densenet121", "batch_size_exponent": 7, "learning_rate": 3e-4}
DISTRIBUTIONS = {
    "resolution": CategoricalDistribution([32, 64, 128]),
    "architecture": CategoricalDistribution(["resnet34", "densenet121"]),
    "batch_size_exponent": IntDistribution(3, 10),
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
}
ATTRIBUTES = {
    "batch_size": 128,
    "feasible_batch_size": 512,
    "batch_cap": "memory",
    "auc_se": 0.0123,
    "epochs": 12,
    "seconds": 61.5,
    "images_per_second": 812.25,
    "device": 'NVIDIA "H200"',
    "seed": 4_000_000_000,
    "origin": 3,
    "reason": "unter dem Median – früh beendet",
}


def _study(database: Database, study_name: str) -> optuna.Study:
    """The registered study, made where it is missing."""
    experiment, _, label = study_name.partition("/")
    save_experiment(database, experiment, {})
    confirm = label.endswith("/confirm")
    label = label.removesuffix("/confirm")
    return create_study(database, study_name, experiment=experiment, label=label, confirm=confirm)


def _add(database: Database, study_name: str, **trial: Any) -> None:
    _study(database, study_name).add_trial(
        create_trial(**{"params": PARAMETERS, "distributions": DISTRIBUTIONS, "value": 0.8} | trial)
    )


def _rows(database: Database, where: str = "true") -> list[Mapping[str, Any]]:
    with database.engine.connect() as connection:
        return list(
            connection.execute(text(f"select * from acuity.all_trials where {where} order by trial_id")).mappings()
        )


def test_no_table_or_view_of_acuity_has_the_name_of_one_of_optunas_tables(database: Database) -> None:
    """Behind a pooler the schema acuity may come before public in the search path of other programs."""
    with database.engine.connect() as connection:
        ours = connection.scalars(text("select relname from pg_class where relnamespace = 'acuity'::regnamespace"))
        assert not set(ours) & set(OPTUNAS_TABLES)


def test_trial_is_shown_with_its_parameters_and_attributes_decoded(database: Database) -> None:
    _add(database, "nih/Mass", user_attrs=ATTRIBUTES, value=0.8125)
    (row,) = _rows(database)
    for name, value in (PARAMETERS | ATTRIBUTES).items():
        assert row[name] == value, name
        assert type(row[name]) is type(value), name
    assert (row["experiment"], row["label"], row["confirm"]) == ("nih", "Mass", False)
    assert (row["number"], row["state"], row["value"], row["requeued"]) == (0, "COMPLETE", 0.8125, False)
    assert abs(row["started"] - datetime.now(UTC)) < timedelta(hours=1)
    assert row["finished"] >= row["started"]


def test_every_choice_of_a_categorical_is_decoded(database: Database) -> None:
    for resolution in (128, 32, 64):
        _add(database, "nih/Mass", params=PARAMETERS | {"resolution": resolution, "architecture": "resnet34"})
    rows = _rows(database)
    assert [(row["resolution"], row["architecture"]) for row in rows] == [
        (128, "resnet34"),
        (32, "resnet34"),
        (64, "resnet34"),
    ]


def test_view_shows_the_experiment_and_the_label_of_each_registered_study(database: Database) -> None:
    for name in ("nih/Mass", "nih/Mass/confirm", "nih/Pleural/Other", "nih-2/Mass"):
        _add(database, name)
    assert [(row["experiment"], row["label"], row["confirm"]) for row in _rows(database)] == [
        ("nih", "Mass", False),
        ("nih", "Mass", True),
        ("nih", "Pleural/Other", False),
        ("nih-2", "Mass", False),
    ]
    assert len(_rows(database, "experiment = 'nih' and not confirm")) == 2


def test_trials_without_parameters_or_value_are_shown_too(database: Database) -> None:
    study = _study(database, "nih/Mass")
    study.enqueue_trial({"resolution": 32})
    database.storage.create_new_trial(study._study_id)
    _add(database, "nih/Mass", state=TrialState.FAIL, value=None, user_attrs={"requeued": True, "auc_se": None})
    waiting, running, failed = _rows(database)
    assert (waiting["state"], waiting["resolution"], waiting["value"]) == ("WAITING", None, None)
    assert (running["state"], running["finished"]) == ("RUNNING", None)
    assert (failed["state"], failed["requeued"], failed["auc_se"]) == ("FAIL", True, None)


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [
        ({"auc_se": math.nan, "seconds": math.inf}, (None, None, None)),
        ({"auc_se": "small", "seconds": [1], "epochs": 1.5, "seed": 1e30, "batch_size": 2**40}, (None, None, None)),
        ({"reason": "NUL \0 and half a pair \ud800"}, (None, None, json.dumps("NUL \0 and half a pair \ud800"))),
        ({"reason": 'two\nlines, "quoted" and \\u0041'}, (None, None, 'two\nlines, "quoted" and \\u0041')),
        ({"reason": {"not": "text"}}, (None, None, '{"not": "text"}')),
    ],
)
def test_unusual_attribute_does_not_break_the_view(
    database: Database, attributes: dict[str, Any], shown: tuple[Any, ...]
) -> None:
    _add(database, "nih/Mass", user_attrs=attributes)
    _add(database, "nih/Mass", user_attrs={"reason": "plain"})
    odd, plain = _rows(database)
    assert repr((odd["auc_se"], odd["seconds"], odd["reason"])) == repr(shown)
    assert plain["reason"] == "plain"


def test_studies_of_other_programs_are_not_in_the_views(database: Database) -> None:
    """Such a study may have parameters of our names and other types."""
    _add(database, "nih/Mass", user_attrs=ATTRIBUTES)
    for name in ("nih/Nodule", "theirs/Mass", "a study"):
        foreign = optuna.create_study(storage=database.storage, study_name=name)
        sizes = CategoricalDistribution(["low", "high"])
        foreign.add_trial(create_trial(params={"resolution": "low"}, distributions={"resolution": sizes}, value=0.9))
    with database.engine.connect() as connection:
        for view in ("all_trials", "best_resolution", "auc_by_resolution"):
            rows = connection.execute(text(f"select experiment, label, resolution from acuity.{view}")).all()
            assert [tuple(row) for row in rows] == [("nih", "Mass", 64)], view


def test_opening_again_keeps_every_row(database: Database, database_url: str) -> None:
    save_experiment(database, "nih", {"labels": ["Mass"]})
    with open_storage(database_url) as again:
        assert read_experiment(again, "nih").definition == {"labels": ["Mass"]}


@pytest.mark.parametrize("other", [VERSION - 1, VERSION + 1])
def test_another_version_of_the_schema_is_refused_and_unchanged(
    database: Database, database_url: str, other: int
) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("update acuity.version set version = :other"), {"other": other})
    refusal = rf"version {other}, this program needs {VERSION}: run the acuity-hpo that made it"
    with pytest.raises(StorageError, match=refusal), open_storage(database_url):
        pass
    with database.engine.connect() as connection:
        assert connection.scalar(text("select version from acuity.version")) == other


def test_query_of_one_experiment_does_not_read_the_others(database: Database) -> None:
    """One index look-up per trial and named column keeps the view fast at 10,000 trials a label."""
    _insert_trials(database, experiments=14, trials=300)
    query = (
        "select label, resolution, value, auc_se from acuity.all_trials where experiment = 'e3' and state = 'COMPLETE'"
    )
    with database.engine.begin() as connection:
        connection.execute(text("analyze"))
        plan = "\n".join(connection.scalars(text(f"explain (analyze, buffers off) {query}")))
        assert len(connection.execute(text(query)).all()) == 300
    assert "Seq Scan on trials" not in plan
    assert plan.count("SubPlan") == 3, plan
    for table in ("trial_params", "trial_user_attributes", "trial_values"):
        assert f"Seq Scan on {table}" not in plan


def _insert_trials(database: Database, *, experiments: int, trials: int) -> None:
    """Insert studies by SQL, with as many rows per trial as a worker writes."""
    distributions = {name: optuna.distributions.distribution_to_json(kind) for name, kind in DISTRIBUTIONS.items()}
    statements = [
        "insert into studies (study_name) select 'e' || e || '/Mass' from generate_series(1, :experiments) e",
        """insert into acuity.registered_studies (study_name, experiment, label, confirm)
        select 'e' || e || '/Mass', 'e' || e, 'Mass', false from generate_series(1, :experiments) e""",
        """insert into trials (number, study_id, state, datetime_start, datetime_complete)
        select n - 1, study_id, 'COMPLETE', now(), now() from studies, generate_series(1, :trials) n""",
        """insert into trial_values (trial_id, objective, value, value_type)
        select trial_id, 0, 0.8, 'FINITE' from trials""",
        """insert into trial_params (trial_id, param_name, param_value, distribution_json)
        select trial_id, key, 1, value from trials, json_each_text(cast(:distributions as json))""",
        """insert into trial_user_attributes (trial_id, key, value_json)
        select trial_id, key, value::text from trials, json_each(cast(:attributes as json))""",
    ]
    values = {
        "experiments": experiments,
        "trials": trials,
        "distributions": json.dumps(distributions),
        "attributes": json.dumps(ATTRIBUTES),
    }
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), {name: v for name, v in values.items() if f":{name}" in statement})
