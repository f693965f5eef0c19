"""Studies with many finished trials, written by SQL."""

from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from sqlalchemy import Engine, text

RESOLUTIONS = (16, 24, 32, 40, 48, 56, 64, 96, 128)
ARCHITECTURES = ("resnet18", "resnet34")


def fill_study(engine: Engine, study_id: int, size: int, *, epochs: int) -> None:
    """Replace the study's trials by finished ones with random values: two thirds complete, one third pruned."""
    parameters = {
        "resolution": (optuna.distributions.CategoricalDistribution(RESOLUTIONS), "floor(random() * 9)"),
        "architecture": (optuna.distributions.CategoricalDistribution(ARCHITECTURES), "floor(random() * 2)"),
        "learning_rate": (
            optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
            "exp(ln(1e-4) + random() * ln(100))",
        ),
        "batch_size_exponent": (optuna.distributions.IntDistribution(2, 3), "2 + floor(random() * 2)"),
    }
    numbers = ("batch_size", "feasible_batch_size", "epochs", "seconds", "images_per_second", "peak_memory_mib")
    numbers += ("accuracy", "average_precision", "seed", "attempt", "threads")
    texts = ("batch_cap", "device", "precision", "split_sha256", "index_sha256", "worker")
    with engine.begin() as connection:

        def run(statement: str, **given: Any) -> None:
            connection.execute(text(statement), {"study_id": study_id} | given)

        for table in ("trial_user_attributes", "trial_system_attributes"):
            run(f"delete from {table} where trial_id in (select trial_id from trials where study_id = :study_id)")
        run("delete from trials where study_id = :study_id")
        run(
            "insert into trials (number, study_id, state, datetime_start, datetime_complete) "
            "select g, :study_id, cast(case when g % 3 = 0 then 'PRUNED' else 'COMPLETE' end as trialstate), "
            "now(), now() "
            "from generate_series(0, :size - 1) g",
            size=size,
        )
        of_study = "from trials where study_id = :study_id"
        for name, (distribution, value) in parameters.items():
            run(
                "insert into trial_params (trial_id, param_name, param_value, distribution_json) "
                f"select trial_id, :name, {value}, :distribution {of_study}",
                name=name,
                distribution=distribution_to_json(distribution),
            )
        run(
            "insert into trial_values (trial_id, objective, value, value_type) "
            f"select trial_id, 0, 0.5 + 0.4 * random(), 'FINITE' {of_study}"
        )
        run(
            "insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
            "select trial_id, step, 0.5 + 0.4 * random(), 'FINITE' from trials, generate_series(1, :epochs) step "
            "where study_id = :study_id",
            epochs=epochs,
        )
        run(
            "insert into trial_user_attributes (trial_id, key, value_json) select trial_id, key, "
            "(1 + floor(random() * 100))::text from trials, unnest(cast(:keys as text[])) key "
            "where study_id = :study_id",
            keys=list(numbers),
        )
        run(
            "insert into trial_user_attributes (trial_id, key, value_json) select trial_id, key, "
            "'\"something\"' from trials, unnest(cast(:keys as text[])) key where study_id = :study_id",
            keys=list(texts),
        )
        for key, value in {"origin": "number::text", "auc_se": "'0.02'"}.items():
            run(
                "insert into trial_user_attributes (trial_id, key, value_json) "
                f"select trial_id, '{key}', {value} {of_study}"
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
