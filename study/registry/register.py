"""Register an experiment at its first launch, and check later launches against its row in the database."""

import secrets
from dataclasses import replace
from pathlib import Path

from acuity.storage.database import Database
from acuity.storage.experiments import find_experiment
from acuity.storage.studies import check_names
from acuity.study.config.caveats import with_found_format
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.loading import load
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.identity import ImageIdentity
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, check_same_images, from_stored, read_registered, save_registered
from acuity.study.registry.sources import check_same_sources, read_sources
from acuity.study.registry.studies import make_studies
from acuity.study.search.space import batch_size_exponents


def register(
    database: Database, experiment: Experiment, identity: ImageIdentity, *, training_images: int
) -> Registered:
    """Write the experiment's row, studies and initial trials, or update the settings that may change under its name.

    training_images: number of training images of the label that has most. UsageError where the file, the index, the
    split or the source of a user's function differ from the stored ones, so that trials are not comparable. UsageError
    also where an experiment in learn_from splits these images differently. StorageError where another program's study
    has the name of one of its studies.
    """
    stored = find_experiment(database, experiment.name)
    if stored is None:
        check_names(database, [study_name(experiment.name, label) for label in experiment.labels])
        _check_same_splits(database, experiment, identity)
        registered = Registered(
            experiment=experiment,
            exponents=batch_size_exponents(experiment, training_images),
            identity=identity,
            checkpoint_mark=secrets.token_hex(4),
            sources=read_sources(experiment),
        )
    else:
        earlier = from_stored(stored)
        _check_unchanged(earlier.experiment, experiment)
        check_same_images(earlier, identity)
        check_same_sources(earlier)
        registered = replace(earlier, experiment=experiment)
    return _save(database, registered)


def read_or_update(database: Database, name: str) -> Registered:
    """Read a registered experiment by its name or its file. A file also updates the settings that may change."""
    if not name.endswith(".toml"):
        return read_registered(database, name)
    experiment = load(Path(name))
    earlier = read_registered(database, experiment.name)
    _check_unchanged(earlier.experiment, experiment)
    if earlier.experiment.data.format is not None:
        experiment = with_found_format(experiment, earlier.experiment.data.format)
    return _save(database, replace(earlier, experiment=experiment))


def _check_same_splits(database: Database, experiment: Experiment, identity: ImageIdentity) -> None:
    """UsageError where an experiment in learn_from splits the same images differently: test patients would leak."""
    for name in experiment.search.learn_from:
        stored = find_experiment(database, name)
        if stored is None:
            continue
        for (their_index, their_split), (index, split) in zip(
            _splits(from_stored(stored).identity), _splits(identity), strict=True
        ):
            if their_index == index and their_split != split:
                raise UsageError(
                    f'search.learn_from names "{name}", which splits the same images differently (split SHA-256 '
                    f"{their_split[:12]}, here {split[:12]}): its recipes were chosen with patients that are test "
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


def _save(database: Database, registered: Registered) -> Registered:
    save_registered(database, registered)
    make_studies(database, registered)
    return registered
