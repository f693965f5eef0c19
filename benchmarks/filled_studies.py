"""An experiment whose studies have many finished trials, written by SQL."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from acuity.storage.database import Database, open_storage

RESOLUTIONS = (16, 24, 32, 40, 48, 56, 64, 96, 128)
ARCHITECTURES = ("resnet18", "resnet34")
EXPERIMENT = """
name = "bench"
labels = {labels}
[data]
index = "{folder}/Data_Entry.csv"
images = "{folder}/images"
cache = "{folder}/cache"
[search]
resolutions = {resolutions}
architectures = {architectures}
trials = 1000000
min_complete_per_resolution = 2
[training]
epochs = {epochs}
network_input = 64
[workers]
memory_budget_gib = 4
"""


def write_labelled_phantoms(folder: Path, labels: Sequence[str]) -> None:
    """Write Data_Entry.csv and images with random findings. Nothing is trained on them."""
    from acuity.objectives.phantoms.generator import write_phantoms

    index = write_phantoms(folder, images=300, size=128)
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file))
    draw = random.Random(0)
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            found = [label for label in labels if draw.random() < 0.3]
            writer.writerow(row | {"Finding Labels": "|".join(found) or "No Finding"})


def register_filled(
    url: URL, folder: Path, *, labels: Sequence[str], size: int, epochs: int, workers: str = ""
) -> None:
    """Register the experiment "bench"; each study holds SIZE finished trials; feasible batches are known.

    folder: has Data_Entry.csv and images. workers: further lines of [workers].
    """
    from acuity.objectives.device.device import open_device
    from acuity.study.config.loading import load
    from acuity.study.dataset.image_set import open_image_set, training_images
    from acuity.study.registry.names import study_name
    from acuity.study.registry.register import register
    from acuity.study.worker.batch_limit import memory_limit

    file = folder / "bench.toml"
    file.write_text(
        EXPERIMENT.format(
            labels=json.dumps(labels),
            folder=folder,
            resolutions=list(RESOLUTIONS),
            architectures=json.dumps(ARCHITECTURES),
            epochs=epochs,
        )
        + workers
    )
    experiment = load(file)
    with open_storage(url_text(url)) as database:
        image_set = open_image_set(experiment)
        register(
            database, experiment, image_set.identity, training_images=training_images(image_set, experiment.labels)
        )
        device = open_device("cpu", workers=1, threads=1, memory_budget_gib=experiment.workers.memory_budget_gib)
        for architecture in ARCHITECTURES:
            memory_limit(database, device, experiment, architecture=architecture, resolution=RESOLUTIONS[0])
        for label in labels if size else ():
            study = optuna.load_study(study_name=study_name("bench", label), storage=database.storage)
            fill_study(database.engine, study._study_id, size, epochs=epochs)
        vacuum(database)


def vacuum(database: Database) -> None:
    """Give the planner the sizes of the tables, which it would learn only after a minute."""
    with database.autocommitted() as connection:
        connection.execute(text("vacuum analyze"))


def administer(url: URL, statement: str) -> None:
    """Run a statement that no transaction may contain, such as `create database`."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


def url_text(url: URL) -> str:
    """The URL with its password."""
    return url.render_as_string(hide_password=False)


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
