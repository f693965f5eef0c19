"""The register of Acuity's studies, acuity.registered_studies. Other programs may keep studies in the same database."""

from collections.abc import Sequence

import optuna
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.errors import StorageError

# A study that exists before its registration is another program's. Of two processes that register one, the second waits
# for the first.
_REGISTER = text(
    "insert into acuity.registered_studies (study_name, experiment, label, confirm) "
    "select :name, :experiment, :label, :confirm "
    "where not exists (select from public.studies where study_name = :name) on conflict do nothing"
)
_IS_REGISTERED = text(
    "select exists (select from acuity.registered_studies where (study_name, experiment, label, confirm) "
    "= (:name, :experiment, :label, :confirm))"
)


def create_study(database: Database, name: str, *, experiment: str, label: str, confirm: bool) -> optuna.Study:
    """Register and create a study of an experiment, or open the existing one.

    StorageError where another program's study, or another label's, has its name.
    """
    row = {"name": name, "experiment": experiment, "label": label, "confirm": confirm}
    with database.engine.begin() as connection:
        connection.execute(_REGISTER, row)
        if not connection.scalar(_IS_REGISTERED, row):
            raise _taken(name)
    return optuna.create_study(storage=database.storage, study_name=name, direction="maximize", load_if_exists=True)


def check_names(database: Database, names: Sequence[str]) -> None:
    """StorageError where a study that is not registered has one of the names."""
    query = text(
        "select study_name from public.studies s where study_name = any(:names) "
        "and not exists (select from acuity.registered_studies r where r.study_name = s.study_name) limit 1"
    )
    with database.engine.connect() as connection:
        taken = connection.scalar(query, {"names": list(names)})
    if taken is not None:
        raise _taken(taken)


def _taken(name: str) -> StorageError:
    return StorageError(
        f'this database has a study "{name}" that is not one of this experiment: give the experiment another name, or '
        "use another database"
    )
