"""Choose the missing recipe of an initial trial when it starts."""

import optuna

from acuity.storage.database import Database
from acuity.study.config.schema import Experiment
from acuity.study.search.history import read_history
from acuity.study.search.initial_design import InitialTrial, choose_parameters


def fix_parameters(
    database: Database,
    experiment: Experiment,
    exponents: tuple[int, int],
    *,
    label: str,
    study: optuna.Study,
    trial_id: int,
) -> None:
    """Write all parameters of an initial trial that was enqueued with some of them.

    Other trials are left as they are. The caller holds the study's claim lock.
    """
    starting = _initial_trial(database.storage.get_trial(trial_id))
    if starting is None or _has_all_parameters(starting):
        return
    others = [_initial_trial(other) for other in study.get_trials(deepcopy=False) if "requeued" not in other.user_attrs]
    parameters = choose_parameters(
        starting,
        experiment,
        exponents,
        label=label,
        history=read_history(database, experiment, exponents),
        started=[other for other in others if other is not None and _has_all_parameters(other)],
    )
    database.storage.set_trial_system_attr(trial_id, "fixed_params", parameters)


def _initial_trial(trial: optuna.trial.FrozenTrial) -> InitialTrial | None:
    part, parameters = trial.user_attrs.get("first"), trial.system_attrs.get("fixed_params")
    return None if part is None or parameters is None else InitialTrial(part, parameters)


def _has_all_parameters(trial: InitialTrial) -> bool:
    return "architecture" in trial.parameters
