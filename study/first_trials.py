"""The recipe of a first trial that starts: the best by what every label of the experiment has seen until then."""

from typing import Any

import optuna
from sqlalchemy import text

from storage.database import Database
from study.recipes import Recipe, Tried, choose_recipe
from study.register import Registered, study_name

_TRIED = text(
    """
    select t.label, t.resolution, t.architecture, t.learning_rate, t.batch_size_exponent,
        case when t.state = 'COMPLETE' then t.value else 0.5 end
    from acuity.trials t join trial_user_attributes a on a.trial_id = t.trial_id and a.key = 'first'
    where t.study_id in (select study_id from studies where study_name = any(:names))
        and t.state in ('COMPLETE', 'PRUNED') and t.architecture is not null
    order by t.trial_id
    """
)


def give_recipe(database: Database, registered: Registered, label: str, study: optuna.Study, trial_id: int) -> None:
    """Fix all parameters of a trial enqueued with its resolution alone. Called under the study's claim lock."""
    fixed = database.storage.get_trial(trial_id).system_attrs.get("fixed_params", {})
    if set(fixed) != {"resolution"}:
        return
    given = set()
    for other in study.get_trials(deepcopy=False):
        parameters = other.system_attrs.get("fixed_params", {})
        if "architecture" in parameters and parameters["resolution"] == fixed["resolution"]:
            given.add(_recipe(parameters))
    recipe = choose_recipe(
        registered.experiment, registered.exponents, label=label, tried=_tried(database, registered), given=given
    )
    database.storage.set_trial_system_attr(trial_id, "fixed_params", recipe.at(fixed["resolution"]))


def _tried(database: Database, registered: Registered) -> list[Tried]:
    experiment = registered.experiment
    names = [study_name(experiment.name, label) for label in experiment.labels]
    with database.engine.connect() as connection:
        rows = connection.execute(_TRIED, {"names": names}).all()
    return [
        Tried(label, resolution, Recipe(architecture, rate, exponent), auc)
        for label, resolution, architecture, rate, exponent, auc in rows
    ]


def _recipe(parameters: dict[str, Any]) -> Recipe:
    return Recipe(parameters["architecture"], parameters["learning_rate"], parameters.get("batch_size_exponent"))
