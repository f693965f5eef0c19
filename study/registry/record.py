"""Read, write and delete an experiment's row in the database."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sqlalchemy import text

from acuity.storage.checkpoints import Checkpoints, open_checkpoints
from acuity.storage.database import Database
from acuity.storage.errors import StorageError
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
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the source of each of the user's functions, by its name "module:function"."""


def read_registered(database: Database, name: str, *, folder: Path | None = None) -> Registered:
    """Read a registered experiment; StorageError where there is none of that name.

    folder: the index's folder on this host, if it is another one.
    """
    registered = from_stored(read_experiment(database, name))
    if folder is None:
        return registered
    return replace(registered, experiment=move_paths(registered.experiment, folder.resolve()))


def from_stored(stored: StoredExperiment) -> Registered:
    """Parse an experiment's row."""
    definition = stored.definition
    low, high = definition["batch_size_exponents"]
    return Registered(
        experiment=parse(definition["experiment"], source="the stored experiment"),
        exponents=(low, high),
        identity=ImageIdentity(**definition["identity"]),
        checkpoint_mark=definition["checkpoint_mark"],
        sources=definition["sources"],
    )


def save_registered(database: Database, registered: Registered) -> None:
    """Write an experiment's row; an existing row of its name is updated."""
    save_experiment(
        database,
        registered.experiment.name,
        {
            "experiment": to_table(registered.experiment),
            "batch_size_exponents": list(registered.exponents),
            "identity": asdict(registered.identity),
            "checkpoint_mark": registered.checkpoint_mark,
            "sources": registered.sources,
        },
    )


def delete_registered(database: Database, registered: Registered) -> None:
    """Delete the experiment with its studies and trials, and the checkpoints that this host sees."""
    checkpoints = checkpoints_of(registered)
    for name, study_id in delete_experiment(database, registered.experiment.name):
        checkpoints.remove_study(checkpoint_name(registered, name, study_id))


def with_current_budget(database: Database, registered: Registered) -> Registered:
    """The same experiment with the `trials` of its last launch. StorageError where it was deleted meanwhile."""
    query = text(
        "select (definition #>> '{experiment,search,trials}')::integer from acuity.experiments where name = :name"
    )
    experiment = registered.experiment
    with database.autocommitted() as connection:
        trials = connection.scalars(query, {"name": experiment.name}).one_or_none()
    if trials is None:
        raise StorageError(
            f"experiment {experiment.name} is no longer in the database: it was deleted, or the database was restored "
            "from an earlier backup. Launch it again"
        )
    if trials == experiment.search.trials:
        return registered
    return replace(registered, experiment=replace(experiment, search=replace(experiment.search, trials=trials)))


def check_same_images(registered: Registered, identity: ImageIdentity) -> None:
    """UsageError where this host's index, split or unused images differ from the experiment's."""
    name, expected = registered.experiment.name, registered.identity
    for what, sha256, expected_sha256 in (
        ("index", identity.index_sha256, expected.index_sha256),
        ("split", identity.split_sha256, expected.split_sha256),
    ):
        if sha256 != expected_sha256:
            raise UsageError(
                f"the {what} here (SHA-256 {sha256[:12]}) is not the one of experiment {name} "
                f"({expected_sha256[:12]}): AUCs of other patients are not comparable. Copy that {what} here, or give "
                "the experiment another name"
            )
    if identity.unused_sha256 != expected.unused_sha256:
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
    """The study's name among the checkpoints. An experiment of the same name in another database has another one."""
    return f"{study_name} {study_id} {registered.checkpoint_mark}"
