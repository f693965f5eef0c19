"""An experiment's entry in the database: made at its first launch, checked by every later command and worker."""

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
from study.errors import UsageError
from study.experiment import Experiment, cache_folder, changes_of_meaning, load, move_paths, parse, to_table
from study.first_trials import first_trials
from study.search import batch_size_exponents
from study.tried import read_tried

_TO_ENQUEUE = "acuity:first_trials"
"""A study's system attribute: its first trials while they are being enqueued, and none once they are."""


@dataclass(frozen=True)
class Whole:
    """SHA-256 before filters: experiments that differ in their filters alone have the same."""

    index_sha256: str
    split_sha256: str


@dataclass(frozen=True)
class Registered:
    """An experiment as its studies know it."""

    experiment: Experiment
    exponents: tuple[int, int]
    """Range of the search's batch_size_exponent, fixed at the first launch."""
    index_sha256: str
    split_sha256: str
    whole: Whole | None = None
    """By default the two above: nothing was filtered, or by a version that did not know."""
    unused_sha256: str | None = None
    """Of the images in no part, since they cannot be read or repeat others; None of a version that did not know."""
    mark: str = ""
    """Drawn at the first launch, empty before versions did: an experiment of this name in another database, whose
    studies have the same ids, has other checkpoints."""

    @property
    def test_patients_sha256(self) -> str:
        """What uses of the test patients are counted by, whatever the filters."""
        return self.whole.split_sha256 if self.whole else self.split_sha256


def register(
    database: Database,
    experiment: Experiment,
    *,
    index_sha256: str,
    split_sha256: str,
    training_images: int,
    whole: Whole | None = None,
    unused_sha256: str = "",
) -> Registered:
    """Write the experiment with its studies and first trials, or update what may change of it under its name.

    UsageError where the file, the index or the split differ from the stored ones so that trials would not compare, or
    where it would learn from an experiment that divides these images otherwise.
    """
    registered = Registered(
        experiment=experiment,
        exponents=batch_size_exponents(experiment, training_images),
        index_sha256=index_sha256,
        split_sha256=split_sha256,
        whole=whole,
        unused_sha256=unused_sha256,
        mark=secrets.token_hex(4),
    )
    stored = find_experiment(database, experiment.name)
    if stored is None:
        _check_teachers(database, registered)
    else:
        earlier = _from_stored(stored)
        _check_unchanged(earlier.experiment, experiment)
        check_same_images(earlier, index_sha256=index_sha256, split_sha256=split_sha256, unused_sha256=unused_sha256)
        registered = replace(registered, exponents=earlier.exponents, whole=earlier.whole or whole, mark=earlier.mark)
    _save(database, registered)
    make_studies(database, registered)
    return registered


def _check_teachers(database: Database, registered: Registered) -> None:
    """UsageError where one to learn from divides the same images otherwise: it may have learnt from test patients."""
    for name in registered.experiment.search.learn_from:
        stored = find_experiment(database, name)
        if stored is None:
            continue
        for theirs, mine in zip(_divisions(_from_stored(stored)), _divisions(registered), strict=True):
            if theirs.index_sha256 == mine.index_sha256 and theirs.split_sha256 != mine.split_sha256:
                raise UsageError(
                    f'search.learn_from names "{name}", which divides the same images otherwise (split SHA-256 '
                    f"{theirs.split_sha256[:12]}, here {mine.split_sha256[:12]}): patients who are test patients here "
                    "have had a say in its recipes. Give both the same split, or leave it out"
                )


def _divisions(registered: Registered) -> tuple[Whole, Whole]:
    """After filters, and before them."""
    filtered = Whole(registered.index_sha256, registered.split_sha256)
    return filtered, registered.whole or filtered


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
        definition={
            "experiment": to_table(registered.experiment),
            "batch_size_exponents": list(registered.exponents),
            "whole": asdict(registered.whole) if registered.whole else None,
            "unused_sha256": registered.unused_sha256,
            "mark": registered.mark,
        },
        index_sha256=registered.index_sha256,
        split_sha256=registered.split_sha256,
    )


def recall(database: Database, name: str, *, folder: Path | None = None) -> Registered:
    """Read a registered experiment; folder is where the index's folder lies on this host, if elsewhere."""
    registered = _from_stored(read_experiment(database, name))
    if folder is None:
        return registered
    return replace(registered, experiment=move_paths(registered.experiment, folder.resolve()))


def with_whole(database: Database, registered: Registered, whole: Whole) -> Registered:
    """The same experiment, its whole split on record where an earlier version had not put it there."""
    if registered.whole is not None:
        return registered
    today = recall(database, registered.experiment.name)  # a launch may have changed it while images were decoded
    _save(database, replace(today, whole=whole))
    return replace(registered, whole=whole)


def with_budget_of_today(database: Database, registered: Registered) -> Registered:
    """The same experiment with the `trials` that its file had at the last launch."""
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
    """Read a registered experiment by its name, or by its file: what may change under a name is then taken from it."""
    if not name.endswith(".toml"):
        return recall(database, name)
    experiment = load(Path(name))
    registered = recall(database, experiment.name)
    _check_unchanged(registered.experiment, experiment)
    updated = replace(registered, experiment=experiment)
    _save(database, updated)
    make_studies(database, updated)
    return updated


def check_same_images(registered: Registered, *, index_sha256: str, split_sha256: str, unused_sha256: str) -> None:
    """UsageError where this host's index, split or images are not those that the experiment's trials were made with."""
    name = registered.experiment.name
    for what, mine, theirs in (
        ("index", index_sha256, registered.index_sha256),
        ("split", split_sha256, registered.split_sha256),
    ):
        if mine != theirs:
            raise UsageError(
                f"the {what} here (SHA-256 {mine[:12]}) is not the one of experiment {name} ({theirs[:12]}): AUCs of "
                f"other patients do not compare. Copy that {what} here, or give the experiment another name"
            )
    if registered.unused_sha256 not in (None, unused_sha256):
        raise UsageError(
            f"the images that experiment {name} has left out, since they could not be read or repeat others, are not "
            "those that are left out here: a file was repaired or lost since. AUCs of other images do not compare. "
            "Copy the images and the cache here from where it ran, or give the experiment another name"
        )


def study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label."""
    return f"{experiment}/{label}"


def checkpoints_of(registered: Registered) -> Checkpoints:
    """Where the experiment's trials keep their checkpoints, as this host sees it."""
    experiment = registered.experiment
    beside_the_cache = cache_folder(experiment, registered.index_sha256) / "checkpoints"
    return open_checkpoints(str(experiment.workers.checkpoints or beside_the_cache))


def checkpoint_name(registered: Registered, study_name: str, study_id: int) -> str:
    """A study's name for its checkpoints: another experiment of the same name must not find them."""
    return f"{study_name} {study_id} {registered.mark}".rstrip()


def forget(database: Database, registered: Registered) -> None:
    """Delete the experiment with its studies and trials, and the checkpoints that this host sees."""
    checkpoints = checkpoints_of(registered)
    for name, study_id in delete_experiment(database, registered.experiment.name):
        checkpoints.remove_study(checkpoint_name(registered, name, study_id))


def make_studies(database: Database, registered: Registered) -> None:
    """Make the study of each label with its first trials, as far as they are not there."""
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
        if planned == [] or (planned is None and trials):  # the latter of a version that did not write it down
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
        # A launch that was interrupted has enqueued the beginning of it; a failed one has been replaced.
        there = sum("first" in trial.user_attrs and trial.state is not TrialState.FAIL for trial in trials)
        for part, parameters in planned[there:]:
            enqueue(database, study, parameters, attributes={"first": part})
        database.storage.set_study_system_attr(study._study_id, _TO_ENQUEUE, [])


def enqueue(database: Database, study: optuna.Study, parameters: dict[str, Any], *, attributes: dict[str, Any]) -> int:
    """Add a waiting trial whose parameters are given and return its id. Called under the study's claim lock."""
    return database.storage.create_new_trial(
        study._study_id,
        template_trial=create_trial(
            state=TrialState.WAITING, system_attrs={"fixed_params": parameters}, user_attrs=attributes
        ),
    )


def _from_stored(stored: StoredExperiment) -> Registered:
    low, high = stored.definition["batch_size_exponents"]
    return Registered(
        experiment=parse(stored.definition["experiment"], source="the stored experiment", stored=True),
        exponents=(low, high),
        index_sha256=stored.index_sha256,
        split_sha256=stored.split_sha256,
        whole=Whole(**stored.definition["whole"]) if stored.definition.get("whole") else None,
        unused_sha256=stored.definition.get("unused_sha256"),
        mark=stored.definition.get("mark", ""),
    )
