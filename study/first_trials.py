"""What a first trial runs is settled when it starts, by what every label of the experiment has seen until then."""

import optuna
from sqlalchemy import text

from storage.database import Database
from study.recipes import Recipe, Tried, complete, recipe_of
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


def complete_first_trial(
    database: Database, registered: Registered, label: str, study: optuna.Study, trial_id: int
) -> None:
    """Fix all parameters of a trial enqueued with a part of them. Called under the study's claim lock."""
    enqueued = database.storage.get_trial(trial_id).system_attrs.get("fixed_params", {})
    if not enqueued or ("resolution" in enqueued and "architecture" in enqueued):
        return
    given: dict[int, set[Recipe]] = {}
    for other in study.get_trials(deepcopy=False):
        parameters = other.system_attrs.get("fixed_params", {})
        if "architecture" in parameters and "resolution" in parameters:
            given.setdefault(parameters["resolution"], set()).add(recipe_of(parameters))
    parameters = complete(
        enqueued,
        registered.experiment,
        registered.exponents,
        label=label,
        tried=_tried(database, registered),
        given=given,
    )
    database.storage.set_trial_system_attr(trial_id, "fixed_params", parameters)


def _tried(database: Database, registered: Registered) -> list[Tried]:
    experiment = registered.experiment
    names = [study_name(experiment.name, label) for label in experiment.labels]
    with database.engine.connect() as connection:
        rows = connection.execute(_TRIED, {"names": names}).all()
    return [
        Tried(label, resolution, Recipe(architecture, rate, exponent), auc)
        for label, resolution, architecture, rate, exponent, auc in rows
    ]
