"""The row of an experiment in the database, read and written."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sqlalchemy import text

from acuity.storage.checkpoints import Checkpoints, open_checkpoints
from acuity.storage.database import Database
from acuity.storage.experiments import StoredExperiment, delete_experiment, read_experiment, save_experiment
from acuity.study.config.loading import parse, to_table
from acuity.study.config.paths import cache_folder, move_paths
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.identity import ImageIdentity


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


def save_record(database: Database, registered: Registered) -> None:
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
    registered = from_stored(read_experiment(database, name))
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


def from_stored(stored: StoredExperiment) -> Registered:
    definition = stored.definition
    low, high = definition["batch_size_exponents"]
    return Registered(
        experiment=parse(definition["experiment"], source="the stored experiment"),
        exponents=(low, high),
        identity=ImageIdentity(**definition["identity"]),
        checkpoint_mark=definition["checkpoint_mark"],
    )
