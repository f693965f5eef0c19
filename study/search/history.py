"""Ended trials of all labels of an experiment and of the experiments that it learns from."""

from collections import Counter

from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.experiments import find_experiment, list_experiments
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.search.recipes import EndedTrial, Recipe, is_in_search_space

# An initial trial is pruned for a loss that is not finite or for lack of memory, so its AUC counts as 0.5. Other pruned
# trials are left out: the reasons for their pruning differ.
_ENDED_TRIALS = text(
    """
    select t.experiment, t.label, t.resolution, t.architecture, t.learning_rate, t.batch_size_exponent,
        case when t.state = 'COMPLETE' then t.value else 0.5 end
    from acuity.all_trials t
    where t.experiment = any(:names) and not t.confirm and t.architecture is not null and (t.state = 'COMPLETE'
        or t.state = 'PRUNED'
            and exists (select from public.trial_user_attributes a where a.trial_id = t.trial_id and a.key = 'first'))
    order by t.trial_id
    """
)

_ANY_EXPONENT = (1, 30)
_OF = "\t"
"""Between the name and the label of another experiment. No label has a tab."""


def read_history(database: Database, experiment: Experiment, exponents: tuple[int, int]) -> list[EndedTrial]:
    """The ended trials with recipes of the experiment's search space, the oldest first.

    They are those of the experiment and of the experiments in learn_from.
    """
    names = [experiment.name, *experiment.search.learn_from]
    with database.autocommitted() as connection:
        rows = connection.execute(_ENDED_TRIALS, {"names": names}).all()
    history = [
        EndedTrial(label if name == experiment.name else f"{name}{_OF}{label}", resolution, Recipe(*recipe), auc)
        for name, label, resolution, *recipe, auc in rows
    ]
    return [trial for trial in history if is_in_search_space(trial.recipe, experiment, exponents)]


def count_learnt(database: Database, experiment: Experiment, exponents: tuple[int, int]) -> dict[str, int]:
    """Number of trials to learn from in each experiment of learn_from."""
    history = read_history(database, experiment, exponents)
    counts = Counter(trial.label.partition(_OF)[0] for trial in history if _OF in trial.label)
    return {name: counts[name] for name in experiment.search.learn_from}


def check_learn_from(database: Database, experiment: Experiment) -> None:
    """UsageError where learn_from of a new experiment names one that is unknown or has no trial of its search space.

    Called before the images are read, so any batch size counts.
    """
    if find_experiment(database, experiment.name) is not None:
        return  # its initial trials exist already
    known = list_experiments(database)
    for name, trials in count_learnt(database, experiment, _ANY_EXPONENT).items():
        if name not in known:
            raise UsageError(
                f'search.learn_from names "{name}", which this storage does not have (there are: '
                f"{', '.join(known) or 'none'}). Launch it first, or leave it out"
            )
        if not trials:
            low, high = experiment.search.learning_rate
            searched = "a searched" if experiment.search.batch == "search" else "no searched"
            raise UsageError(
                f'search.learn_from names "{name}", which has no finished trial with one of {experiment.name}\'s '
                f"architectures, a learning rate from {low:g} to {high:g} and {searched} batch size: there is nothing "
                "to learn from it. Leave it out, or wait until it has some"
            )
