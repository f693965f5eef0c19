"""An experiment's row in the database: the first launch writes it, later commands and workers check it."""

import secrets
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial
from sqlalchemy import text

from storage.checkpoints import Checkpoints, open_checkpoints
from storage.claim import claim_study
from storage.database import Database
from storage.experiments import StoredExperiment, delete_experiment, find_experiment, read_experiment, save_experiment
from study.config_changes import changes_of_meaning
from study.config_loading import load, parse, to_table
from study.config_paths import cache_folder, move_paths
from study.config_schema import Experiment
from study.errors import UsageError
from study.first_trials import first_trials
from study.image_identity import ImageIdentity
from study.search import batch_size_exponents
from study.tried import read_tried

_TO_ENQUEUE = "acuity:first_trials"
"""A study's system attribute: its first trials while a launch enqueues them, then an empty list."""


@dataclass(frozen=True)
class Registered:
    """An experiment as the database has it."""

    experiment: Experiment
    exponents: tuple[int, int]
    """Range of the search's batch_size_exponent. The first launch decides it."""
    identity: ImageIdentity
    """Of the images that the trials are trained with."""
    checkpoint_mark: str
    """Drawn at the first launch. It separates the checkpoints of two databases with an experiment of one name."""


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
        earlier = _from_stored(stored)
        _check_unchanged(earlier.experiment, experiment)
        check_same_images(earlier, identity)
        registered = replace(earlier, experiment=experiment)
    _save(database, registered)
    make_studies(database, registered)
    return registered


def _check_teachers(database: Database, experiment: Experiment, identity: ImageIdentity) -> None:
    """UsageError where an experiment in learn_from splits the same images differently: test patients would leak."""
    for name in experiment.search.learn_from:
        stored = find_experiment(database, name)
        if stored is None:
            continue
        for theirs, mine in zip(_splits(_from_stored(stored).identity), _splits(identity), strict=True):
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


def _save(database: Database, registered: Registered) -> None:
    save_experiment(
        database,
        registered.experiment.name,
        {
            "experiment": to_table(registered.experiment),
            "batch_size_exponents": list(registered.exponents),
            "identity": asdict(registered.identity),
            "checkpoint_mark": registered.checkpoint_mark,
        },
    )


def recall(database: Database, name: str, *, folder: Path | None = None) -> Registered:
    """Read a registered experiment. folder: of the index on this host, if it is another one."""
    registered = _from_stored(read_experiment(database, name))
    if folder is None:
        return registered
    return replace(registered, experiment=move_paths(registered.experiment, folder.resolve()))


def with_budget_of_today(database: Database, registered: Registered) -> Registered:
    """The same experiment with the `trials` of its last launch."""
    query = text(
        "select (definition #>> '{experiment,search,trials}')::integer from acuity.experiments where name = :name"
    )
    experiment = registered.experiment
    with database.engine.connect() as connection:
        trials = connection.scalars(query, {"name": experiment.name}).one_or_none()
    if trials is None or trials == experiment.search.trials:
        return registered
    return replace(registered, experiment=replace(experiment, search=replace(experiment.search, trials=trials)))


def recall_or_update(database: Database, name: str) -> Registered:
    """Read a registered experiment by its name or by its file. A file also updates what may change under the name."""
    if not name.endswith(".toml"):
        return recall(database, name)
    experiment = load(Path(name))
    registered = recall(database, experiment.name)
    _check_unchanged(registered.experiment, experiment)
    updated = replace(registered, experiment=experiment)
    _save(database, updated)
    make_studies(database, updated)
    return updated


def check_same_images(registered: Registered, identity: ImageIdentity) -> None:
    """UsageError where this host's index, split or images are not those that the experiment's trials were made with."""
    name, theirs = registered.experiment.name, registered.identity
    for what, sha256, expected in (
        ("index", identity.index_sha256, theirs.index_sha256),
        ("split", identity.split_sha256, theirs.split_sha256),
    ):
        if sha256 != expected:
            raise UsageError(
                f"the {what} here (SHA-256 {sha256[:12]}) is not the one of experiment {name} ({expected[:12]}): AUCs "
                f"of other patients are not comparable. Copy that {what} here, or give the experiment another name"
            )
    if identity.unused_sha256 != theirs.unused_sha256:
        raise UsageError(
            f"experiment {name} leaves out other images (unreadable ones and repeats) than those that are left out "
            "here: a file was repaired or lost since. AUCs of other images are not comparable. Copy the images and "
            "the cache here from the host that ran it, or give the experiment another name"
        )


def study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label's search."""
    return f"{experiment}/{label}"


def confirm_study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label's confirmation."""
    return f"{study_name(experiment, label)}/confirm"


def checkpoints_of(registered: Registered) -> Checkpoints:
    """The folder or address of the experiment's checkpoints on this host."""
    experiment = registered.experiment
    beside_the_cache = cache_folder(experiment, registered.identity.index_sha256) / "checkpoints"
    return open_checkpoints(str(experiment.workers.checkpoints or beside_the_cache))


def checkpoint_name(registered: Registered, study_name: str, study_id: int) -> str:
    """The name under which a study's checkpoints are kept; no experiment of the same name elsewhere shares it."""
    return f"{study_name} {study_id} {registered.checkpoint_mark}"


def forget(database: Database, registered: Registered) -> None:
    """Delete the experiment with its studies and trials, and the checkpoints that this host sees."""
    checkpoints = checkpoints_of(registered)
    for name, study_id in delete_experiment(database, registered.experiment.name):
        checkpoints.remove_study(checkpoint_name(registered, name, study_id))


def make_studies(database: Database, registered: Registered) -> None:
    """Create the missing studies of the labels and enqueue their missing first trials."""
    informed = bool(read_tried(database, registered.experiment, registered.exponents))
    for label in registered.experiment.labels:
        _make_study(database, registered, label, informed=informed)


def _make_study(database: Database, registered: Registered, label: str, *, informed: bool) -> None:
    experiment = registered.experiment
    study = optuna.create_study(
        storage=database.storage,
        study_name=study_name(experiment.name, label),
        direction="maximize",
        load_if_exists=True,
    )
    with claim_study(database, study._study_id):
        trials = study.get_trials(deepcopy=False)
        planned = database.storage.get_study_system_attrs(study._study_id).get(_TO_ENQUEUE)
        if planned == []:
            return
        if planned is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since Optuna 3.2
                study.set_metric_names(["validation AUC"])
            planned = [
                [first.part, first.parameters]
                for first in first_trials(experiment, registered.exponents, label, informed=informed)
            ]
            database.storage.set_study_system_attr(study._study_id, _TO_ENQUEUE, planned)
        # An interrupted launch has enqueued the first of them. A trial that failed has a successor with "first" too.
        there = sum("first" in trial.user_attrs and trial.state is not TrialState.FAIL for trial in trials)
        for part, parameters in planned[there:]:
            enqueue(database, study, parameters, attributes={"first": part})
        database.storage.set_study_system_attr(study._study_id, _TO_ENQUEUE, [])


def enqueue(database: Database, study: optuna.Study, parameters: dict[str, Any], *, attributes: dict[str, Any]) -> int:
    """Add a waiting trial with these parameters and return its id. The caller holds the study's claim lock."""
    return database.storage.create_new_trial(
        study._study_id,
        template_trial=create_trial(
            state=TrialState.WAITING, system_attrs={"fixed_params": parameters}, user_attrs=attributes
        ),
    )


def _from_stored(stored: StoredExperiment) -> Registered:
    definition = stored.definition
    low, high = definition["batch_size_exponents"]
    return Registered(
        experiment=parse(definition["experiment"], source="the stored experiment"),
        exponents=(low, high),
        identity=ImageIdentity(**definition["identity"]),
        checkpoint_mark=definition["checkpoint_mark"],
    )
