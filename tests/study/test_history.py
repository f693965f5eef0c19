"""Earlier trials inform a search: those of other experiments in the storage, and of other labels."""

import dataclasses
import tomllib
from collections.abc import Sequence

import optuna
import pytest
from optuna.trial import TrialState

from acuity.storage.database import Database
from acuity.storage.experiments import delete_experiment, list_experiments
from acuity.study.config.loading import parse
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.claims import claim_trial, open_studies
from acuity.study.registry.identity import ImageIdentity
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, read_registered
from acuity.study.registry.register import register
from acuity.study.report.methods import write_methods
from acuity.study.results.answer import read_answer
from acuity.study.results.summary import summarise_search
from acuity.study.search.history import check_learn_from, count_learnt, read_history
from acuity.study.search.recipes import Recipe, recipe_of
from acuity.study.search.space import BELOW_THE_MEDIAN, suggest
from support.image_identities import unfiltered
from support.searched_experiment import FAIR, GOOD, POOR

FILE = """
name = "{name}"
labels = {labels}
data = {{ index = "a.csv", images = "images" }}
training = {{ epochs = 5 }}
[search]
resolutions = [32, 64]
architectures = ["test_resnet", "test_efficientnet"]
trials = {trials}
learn_from = {learn_from}
"""
EXPONENTS = (4, 6)
ELSEWHERE = Recipe("resnet34", 1e-3, 5)


def experiment(name: str, labels: list[str], learn_from: Sequence[str], *, trials: int = 12) -> Experiment:
    text = FILE.format(name=name, labels=labels, learn_from=list(learn_from), trials=trials)
    return parse(tomllib.loads(text), source="test")


def registered(
    database: Database,
    name: str,
    *,
    labels: list[str],
    learn_from: Sequence[str] = (),
    identity: ImageIdentity | None = None,
    trials: int = 12,
) -> Registered:
    return register(
        database,
        experiment(name, labels, learn_from, trials=trials),
        identity or unfiltered(),
        training_images=20 * 2 ** EXPONENTS[1],
    )


def has_run(database: Database, name: str, recipes: dict[Recipe, float | None], *, label: str = "Mass") -> None:
    """Add trials of that experiment at 64 px; an AUC of None means pruned by the median."""
    study = optuna.load_study(storage=database.storage, study_name=study_name(name, label))
    distributions = {
        "resolution": optuna.distributions.CategoricalDistribution([32, 64]),
        "architecture": optuna.distributions.CategoricalDistribution(["test_resnet", "test_efficientnet", "resnet34"]),
        "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "batch_size_exponent": optuna.distributions.IntDistribution(4, 6),
    }
    for recipe, auc in recipes.items():
        state = TrialState.PRUNED if auc is None else TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(state=state, params=recipe.at(64), distributions=distributions, value=auc)
        )


def starts(database: Database, registered: Registered, label: str, *, auc: float = 0.6) -> tuple[Recipe, int]:
    """Run the label's next trial with this AUC; return its recipe and resolution."""
    studies = {label: open_studies(database, registered, sampler_seed=0)[label]}
    claim = claim_trial(database, registered, studies, can_hold=lambda *_: True)
    assert claim is not None
    trial = optuna.Trial(claim.study, claim.trial_id)
    asked = suggest(trial, registered.experiment, registered.exponents)
    trial.set_user_attr("auc_se", 0.02)
    claim.study.tell(trial, auc)
    return recipe_of(dataclasses.asdict(asked)), asked.resolution


def search_paragraph(database: Database, registered: Registered, label: str) -> str:
    """The methods text's paragraph on the search."""
    summaries = [summarise_search(database, registered, label)]
    paragraphs = write_methods(
        registered, read_answer(database, registered.experiment.name), summaries, None, None, None
    )
    (search,) = (paragraph.text for paragraph in paragraphs if paragraph.heading == "Search")
    return search


@pytest.fixture
def pilot(database: Database) -> str:
    registered(database, "pilot", labels=["Mass"])
    has_run(database, "pilot", {FAIR: 0.7, GOOD: 0.8, POOR: 0.6, ELSEWHERE: 0.95})
    return "pilot"


def test_experiment_begins_with_the_best_recipe_of_the_one_it_learns_from(database: Database, pilot: str) -> None:
    again = registered(database, "again", labels=["Nodule"], learn_from=[pilot])
    assert [starts(database, again, "Nodule") for _ in range(2)] == [(GOOD, 32), (GOOD, 64)]
    for expected in (32, 64):
        own, resolution = starts(database, again, "Nodule", auc=0.4)
        assert (own not in {GOOD, FAIR, POOR}, resolution) == (True, expected), "it still tries own recipes"
    # GOOD has run there, and the own recipes were worse than FAIR.
    assert [starts(database, again, "Nodule") for _ in range(2)] == [(FAIR, 32), (FAIR, 64)]


@pytest.mark.usefixtures("pilot")
def test_without_learn_from_an_experiment_begins_with_its_own_recipes(database: Database) -> None:
    again = registered(database, "again", labels=["Nodule"])
    assert read_history(database, again.experiment, again.exponents) == []
    assert starts(database, again, "Nodule")[0] not in {GOOD, FAIR, POOR}


def test_trials_of_other_spaces_and_trials_pruned_by_the_median_are_not_learnt_from(
    database: Database, pilot: str
) -> None:
    has_run(database, pilot, {dataclasses.replace(GOOD, learning_rate=5e-4): None})
    again = experiment("again", ["Nodule"], [pilot])
    tried = read_history(database, again, EXPONENTS)
    assert {(each.label, each.resolution, each.recipe, each.auc) for each in tried} == {
        ("pilot\tMass", 64, GOOD, 0.8),
        ("pilot\tMass", 64, FAIR, 0.7),
        ("pilot\tMass", 64, POOR, 0.6),
    }


def test_label_added_later_begins_with_the_best_recipe_of_the_others(database: Database, pilot: str) -> None:
    added = registered(database, pilot, labels=["Mass", "Hernia"])
    assert [starts(database, added, "Hernia") for _ in range(2)] == [(GOOD, 32), (GOOD, 64)]


def test_experiment_continues_after_the_one_it_learns_from_is_deleted(database: Database, pilot: str) -> None:
    again = registered(database, "again", labels=["Nodule"], learn_from=[pilot])
    assert starts(database, again, "Nodule") == (GOOD, 32)
    delete_experiment(database, pilot)
    check_learn_from(database, again.experiment)
    again = registered(database, "again", labels=["Nodule"], learn_from=[pilot])
    assert starts(database, again, "Nodule") == (GOOD, 64), "its own trial has this result"


@pytest.mark.usefixtures("pilot")
def test_unknown_experiment_in_learn_from_is_refused_with_the_known_ones(database: Database) -> None:
    with pytest.raises(UsageError, match=r'names "pilto".*there are: pilot'):
        check_learn_from(database, experiment("again", ["Nodule"], ["pilto"]))
    with pytest.raises(UsageError, match="this experiment's name"):
        experiment("pilot", ["Mass"], ["pilot"])


def test_learn_from_without_a_trial_of_this_search_space_is_refused(database: Database, pilot: str) -> None:
    registered(database, "empty", labels=["Mass"])
    has_run(database, "empty", {ELSEWHERE: 0.9})
    with pytest.raises(UsageError, match=r'names "empty", which has no finished trial .* rate from 0.0001 to 0.01'):
        check_learn_from(database, experiment("again", ["Nodule"], ["empty", pilot]))
    again = experiment("again", ["Nodule"], [pilot])
    check_learn_from(database, again)
    assert count_learnt(database, again, EXPONENTS) == {pilot: 3}
    assert count_learnt(database, again, (6, 7)) == {pilot: 0}, "no such batch is searched here"


def test_learn_from_with_another_split_of_the_same_images_is_refused(database: Database, pilot: str) -> None:
    with pytest.raises(
        UsageError, match=r"pilot.*splits the same images differently \(split SHA-256 split, here other"
    ):
        registered(database, "again", labels=["Nodule"], learn_from=[pilot], identity=unfiltered(split="other"))
    assert "again" not in list_experiments(database)


def test_filter_does_not_hide_another_split_of_the_same_images(database: Database, pilot: str) -> None:
    def filtered(*, index: str = "filtered index", whole_index: str = "index", whole_split: str) -> ImageIdentity:
        return ImageIdentity(
            index_sha256=index,
            split_sha256="what is left of it",
            whole_index_sha256=whole_index,
            whole_split_sha256=whole_split,
            unused_sha256="unused",
        )

    def launch(learn_from: str, identity: ImageIdentity) -> Registered:
        return registered(database, "again", labels=["Nodule"], learn_from=[learn_from], identity=identity)

    with pytest.raises(UsageError, match=r"splits the same images differently \(split SHA-256 split, here other"):
        launch(pilot, filtered(whole_split="other"))
    registered(database, "older", labels=["Mass"], identity=unfiltered(split="another"))
    has_run(database, "older", {FAIR: 0.7})
    with pytest.raises(UsageError, match=r"splits the same images differently \(split SHA-256 another, here what is"):
        launch("older", filtered(index="index", whole_index="whole", whole_split="whole"))
    again = launch(pilot, filtered(whole_split="split"))
    assert read_registered(database, "again") == again
    assert again.identity.whole_split_sha256 == read_registered(database, pilot).identity.whole_split_sha256 == "split"


def test_methods_text_counts_stopped_trials_and_trials_that_could_not_run_apart(database: Database) -> None:
    nih = registered(database, "nih", labels=["Mass"])
    starts(database, nih, "Mass")
    for reason in (BELOW_THE_MEDIAN, "the loss became NaN"):
        claim = claim_trial(database, nih, open_studies(database, nih, sampler_seed=0), can_hold=lambda *_: True)
        assert claim is not None
        trial = optuna.Trial(claim.study, claim.trial_id)
        suggest(trial, nih.experiment, nih.exponents)
        trial.set_user_attr("reason", reason)
        claim.study.tell(trial, state=TrialState.PRUNED)
    counts = "1 complete, 1 stopped early, 1 without an AUC since they diverged or their batch did not fit"
    assert counts in search_paragraph(database, nih, "Mass")


def test_methods_text_names_the_experiment_in_learn_from(database: Database, pilot: str) -> None:
    again = registered(database, "again", labels=["Nodule"], learn_from=[pilot])
    search = search_paragraph(database, again, "Nodule")
    assert "that had been best in experiment pilot and for the other labels" in search


def test_learn_from_cannot_be_changed_under_the_same_name(database: Database, pilot: str) -> None:
    registered(database, "again", labels=["Nodule"])
    with pytest.raises(UsageError, match=r"search.learn_from: \[\] -> \[\"pilot\"\]"):
        registered(database, "again", labels=["Nodule"], learn_from=[pilot])
