"""What has been tried before: by all labels of an experiment, and by the experiments that it learns from."""

from collections import Counter

from sqlalchemy import text

from storage.database import Database
from storage.experiments import find_experiment, list_experiments
from study.config_schema import Experiment
from study.errors import UsageError
from study.recipes import Recipe, Tried, searched_by

# A first trial that was pruned had no finite loss, or no room: it has seen nothing. Why others were is not told apart.
_TRIED = text(
    """
    select t.experiment, t.label, t.resolution, t.architecture, t.learning_rate, t.batch_size_exponent,
        case when t.state = 'COMPLETE' then t.value else 0.5 end
    from acuity.trials t
    where t.experiment = any(:names) and not t.confirm and t.architecture is not null and (t.state = 'COMPLETE'
        or t.state = 'PRUNED'
            and exists (select from trial_user_attributes a where a.trial_id = t.trial_id and a.key = 'first'))
    order by t.trial_id
    """
)

_ANY_EXPONENT = (1, 30)


def read_tried(database: Database, experiment: Experiment, exponents: tuple[int, int]) -> list[Tried]:
    """All trials that count, with recipes of the experiment's own space; the oldest first."""
    names = [experiment.name, *experiment.search.learn_from]
    with database.engine.connect() as connection:
        rows = connection.execute(_TRIED, {"names": names}).all()
    tried = [
        Tried(label if name == experiment.name else f"{name}/{label}", resolution, Recipe(*recipe), auc)
        for name, label, resolution, *recipe, auc in rows
    ]
    return [each for each in tried if searched_by(each.recipe, experiment, exponents)]


def count_learnt(database: Database, experiment: Experiment, exponents: tuple[int, int]) -> dict[str, int]:
    """Trials that can be learnt from, by the experiments that are named for it."""
    tried = read_tried(database, experiment, exponents)
    counts = Counter(each.label.rsplit("/", 1)[0] for each in tried if "/" in each.label)
    return {name: counts[name] for name in experiment.search.learn_from}


def check_learn_from(database: Database, experiment: Experiment) -> None:
    """UsageError where a new experiment names one that is not in the storage, or has tried nothing of its space.

    For before the images are read, with which the range of batch sizes is known.
    """
    if find_experiment(database, experiment.name) is not None:
        return  # begun: what it has learnt stays learnt
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
