"""An experiment's row in the database: the first launch writes it, later commands and workers check it."""

import secrets
from dataclasses import replace
from pathlib import Path

from acuity.storage.database import Database
from acuity.storage.experiments import (
    find_experiment,
)
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.loading import load
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.identity import ImageIdentity
from acuity.study.registry.record import Registered, check_same_images, from_stored, recall, save_record
from acuity.study.registry.studies import make_studies
from acuity.study.search.space import batch_size_exponents


def register(
    database: Database, experiment: Experiment, identity: ImageIdentity, *, training_images: int
) -> Registered:
    """Write the experiment with its studies and first trials, or update what may change of it under its name.

    training_images: of the label that has most of them. UsageError where the file, the index or the split differ from
    the stored ones so that trials are not comparable, or where an experiment in learn_from splits these images
    differently.
    """
    stored = find_experiment(database, experiment.name)
    if stored is None:
        _check_teachers(database, experiment, identity)
        registered = Registered(
            experiment=experiment,
            exponents=batch_size_exponents(experiment, training_images),
            identity=identity,
            checkpoint_mark=secrets.token_hex(4),
        )
    else:
        earlier = from_stored(stored)
        _check_unchanged(earlier.experiment, experiment)
        check_same_images(earlier, identity)
        registered = replace(earlier, experiment=experiment)
    save_record(database, registered)
    make_studies(database, registered)
    return registered


def _check_teachers(database: Database, experiment: Experiment, identity: ImageIdentity) -> None:
    """UsageError where an experiment in learn_from splits the same images differently: test patients would leak."""
    for name in experiment.search.learn_from:
        stored = find_experiment(database, name)
        if stored is None:
            continue
        for theirs, mine in zip(_splits(from_stored(stored).identity), _splits(identity), strict=True):
            if theirs[0] == mine[0] and theirs[1] != mine[1]:
                raise UsageError(
                    f'search.learn_from names "{name}", which splits the same images differently (split SHA-256 '
                    f"{theirs[1][:12]}, here {mine[1][:12]}): its recipes were chosen with patients who are test "
                    "patients here. Give both the same split, or leave it out"
                )


def _splits(identity: ImageIdentity) -> tuple[tuple[str, str], tuple[str, str]]:
    """SHA-256 of (index, split) after filters and before them."""
    return (
        (identity.index_sha256, identity.split_sha256),
        (identity.whole_index_sha256, identity.whole_split_sha256),
    )


def _check_unchanged(earlier: Experiment, experiment: Experiment) -> None:
    differences = changes_of_meaning(earlier, experiment)
    if differences:
        raise UsageError(
            f"experiment {experiment.name} exists with other settings ({'; '.join(differences)}). Trials of both "
            f"would not be comparable: give the file another name, or `acuity delete {experiment.name}` first"
        )


def recall_or_update(database: Database, name: str) -> Registered:
    """Read a registered experiment by its name or by its file. A file also updates what may change under the name."""
    if not name.endswith(".toml"):
        return recall(database, name)
    experiment = load(Path(name))
    registered = recall(database, experiment.name)
    _check_unchanged(registered.experiment, experiment)
    updated = replace(registered, experiment=experiment)
    save_record(database, updated)
    make_studies(database, updated)
    return updated
