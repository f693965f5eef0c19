"""Initial trials on a real Postgres: results of one label choose the recipes of the others."""

import tomllib

import optuna
import pytest
from optuna.trial import TrialState

from acuity.storage.database import Database
from acuity.storage.trials import claim_study
from acuity.study.config.loading import parse
from acuity.study.registry.claims import Claim, claim_trial, open_studies
from acuity.study.registry.record import Registered
from acuity.study.registry.recovery import fail_trial, release_trial
from acuity.study.registry.studies import make_studies
from acuity.study.search.recipes import Recipe, recipe_of
from acuity.study.search.space import suggest
from support.image_identities import unfiltered
from support.silent_workers import requeue_silent

EXPERIMENT = """
name = "nih"
labels = ["Effusion", "Mass"]
data = { index = "a.csv", images = "images" }
training = { epochs = 5 }
[search]
resolutions = [32, 64]
architectures = ["test_resnet", "test_efficientnet"]
trials = 8
min_complete_per_resolution = 2
"""


@pytest.fixture
def registered(database: Database) -> Registered:
    registered = Registered(parse(tomllib.loads(EXPERIMENT), source="test"), (4, 6), unfiltered(), "mark")
    make_studies(database, registered)
    return registered


def start(database: Database, registered: Registered, label: str) -> tuple[Claim, optuna.Trial, Recipe, int]:
    """The label's next trial, with the parameters that its worker would train with."""
    studies = {label: open_studies(database, registered, sampler_seed=0)[label]}
    claim = claim_trial(database, registered, studies, can_hold=lambda *_: True)
    assert claim is not None
    trial = optuna.Trial(claim.study, claim.trial_id)
    asked = suggest(trial, registered.experiment, registered.exponents)
    return claim, trial, Recipe(asked.architecture, asked.learning_rate, asked.batch_size_exponent), asked.resolution


def test_own_recipes_run_where_the_finding_is_detectable_and_the_best_of_all_labels_everywhere(
    database: Database, registered: Registered
) -> None:
    looked: dict[str, Recipe] = {}
    for label, aucs in {"Effusion": {32: 0.80, 64: 0.85}, "Mass": {32: 0.55, 64: 0.56}}.items():
        for resolution, auc in aucs.items():
            claim, trial, looked[label], at = start(database, registered, label)
            assert (at, claim.is_initial) == (resolution, True)
            claim.study.tell(trial, auc)
    own = {}
    for label, expected, aucs in (("Effusion", 32, (0.9,)), ("Mass", 64, (0.5,))):
        for auc in aucs:
            claim, trial, recipe, at = start(database, registered, label)
            assert (at, recipe == looked[label]) == (expected, False)
            own[label, auc] = recipe
            claim.study.tell(trial, auc)
    claim, trial, recipe, at = start(database, registered, "Mass")
    assert (recipe, at) == (own["Effusion", 0.9], 32), "64 px has its label's own recipe"
    claim.study.tell(trial, 0.5)
    assert not start(database, registered, "Mass")[0].is_initial, "each resolution has two initial trials"


def test_recipe_that_diverged_counts_as_an_auc_of_one_half(database: Database) -> None:
    text = EXPERIMENT.replace("min_complete_per_resolution = 2", "min_complete_per_resolution = 3")
    registered = Registered(parse(tomllib.loads(text), source="test"), (4, 6), unfiltered(), "mark")
    make_studies(database, registered)
    tried = []
    for auc in (0.7, 0.7, None, 0.6):
        claim, trial, recipe, _ = start(database, registered, "Effusion")
        if auc is None:
            claim.study.tell(trial, state=TrialState.PRUNED)
        else:
            claim.study.tell(trial, auc)
        tried.append(recipe)
    *_, looked, diverged, learnt = tried
    claim, trial, recipe, resolution = start(database, registered, "Effusion")
    assert (recipe, resolution) == (learnt, 64), f"after {looked}, which 64 px has had, and before {diverged}"


def test_failed_initial_trial_is_replaced_by_another_recipe_at_its_resolution(
    database: Database, registered: Registered
) -> None:
    claim, _, failed, resolution = start(database, registered, "Effusion")
    with claim_study(database, claim.study._study_id):
        fail_trial(database, claim.study, database.storage.get_trial(claim.trial_id), reason="a test's")
    assert resolution == 32
    at_32 = []
    for _ in range(4):
        claim, trial, recipe, resolution = start(database, registered, "Effusion")
        claim.study.tell(trial, 0.7 if resolution == 64 else 0.5)
        if resolution == 32:
            at_32.append(recipe)
    assert len(at_32) == 2, "one of the best, and one in the failed one's place"
    assert failed not in at_32


def test_trial_of_a_worker_that_died_before_choosing_parameters_starts_as_it_was_enqueued(
    database: Database, registered: Registered
) -> None:
    for _ in range(2):
        claim, trial, looked, _ = start(database, registered, "Effusion")
        claim.study.tell(trial, 0.8)
    study = claim.study
    (third,) = (trial for trial in study.get_trials() if trial.number == 2)
    assert set(third.system_attrs["fixed_params"]) == {"architecture", "learning_rate", "batch_size_exponent"}
    database.storage.set_trial_state_values(third._trial_id, TrialState.RUNNING)
    requeue_silent(database, registered, {"Effusion": study}, grace_s=0)
    claim, _, recipe, resolution = start(database, registered, "Effusion")
    assert claim.attempt == 2
    assert (recipe, resolution) == (recipe_of(third.system_attrs["fixed_params"]), 32)
    assert recipe != looked


def test_carried_recipe_of_a_worker_that_died_before_choosing_parameters_runs_at_its_resolution(
    database: Database, registered: Registered
) -> None:
    for _ in range(3):
        claim, trial, *_ = start(database, registered, "Mass")
        claim.study.tell(trial, 0.8)
    study = claim.study
    (carried,) = (trial for trial in study.get_trials() if trial.number == 3)
    database.storage.set_trial_state_values(carried._trial_id, TrialState.RUNNING)
    requeue_silent(database, registered, {"Mass": study}, grace_s=0)
    assert start(database, registered, "Mass")[3] == 64


def test_preempted_own_trial_does_not_push_the_next_one_to_the_largest_resolution(database: Database) -> None:
    text = EXPERIMENT.replace("[32, 64]", "[32, 64, 128]").replace("trials = 8", "trials = 12")
    text = text.replace("min_complete_per_resolution = 2", "min_complete_per_resolution = 3")
    registered = Registered(parse(tomllib.loads(text), source="test"), (4, 6), unfiltered(), "mark")
    make_studies(database, registered)
    for _ in range(3):
        start(database, registered, "Mass")  # they never end
    claim, _, recipe, first = start(database, registered, "Mass")
    release_trial(database, claim, reason="a test's")
    again, _, same, resolution = start(database, registered, "Mass")
    assert (again.attempt, same, first, resolution) == (2, recipe, 32, 32)
    assert start(database, registered, "Mass")[3] == 128
    assert start(database, registered, "Mass")[3] == 64, "the one with the fewest"
