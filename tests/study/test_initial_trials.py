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
from acuity.study.search.recipes import Recipe
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


def test_every_resolution_has_a_recipe_of_its_label_and_then_the_best_of_all_labels(
    database: Database, registered: Registered
) -> None:
    aucs = {"Effusion": [0.80, 0.85, 0.70, 0.95], "Mass": [0.55, 0.56, 0.50, 0.50]}
    ran: dict[str, list[tuple[Recipe, int]]] = {label: [] for label in aucs}
    for label, values in aucs.items():
        for auc in values:
            claim, trial, recipe, at = start(database, registered, label)
            assert claim.is_initial
            ran[label].append((recipe, at))
            claim.study.tell(trial, auc)
        first, again, small, large = ran[label]
        assert [at for _, at in ran[label]] == [32, 64, 32, 64]
        assert first[0] == again[0]
        assert len({first[0], small[0], large[0]}) == 3
    best = ran["Effusion"][3][0]
    for expected in (32, 64):
        claim, trial, recipe, at = start(database, registered, "Mass")
        assert (recipe, at) == (best, expected)
        claim.study.tell(trial, 0.5)
    assert not start(database, registered, "Mass")[0].is_initial, "each resolution has three initial trials"


def test_recipe_that_diverged_counts_as_an_auc_of_one_half(database: Database, registered: Registered) -> None:
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
    assert (recipe, resolution) == (learnt, 32), f"after {looked}, which 32 px has had, and before {diverged}"


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


def test_trial_of_a_worker_that_died_before_choosing_a_recipe_runs_at_its_resolution(
    database: Database, registered: Registered
) -> None:
    for _ in range(5):
        claim, trial, *_ = start(database, registered, "Mass")
        claim.study.tell(trial, 0.8)
    study = claim.study
    (carried,) = (trial for trial in study.get_trials() if trial.number == 5)
    assert carried.system_attrs["fixed_params"] == {"resolution": 64}
    database.storage.set_trial_state_values(carried._trial_id, TrialState.RUNNING)
    requeue_silent(database, registered, {"Mass": study}, grace_s=0)
    claim, *_, resolution = start(database, registered, "Mass")
    assert (claim.attempt, resolution) == (2, 64)


def test_preempted_trial_keeps_its_recipe(database: Database, registered: Registered) -> None:
    for _ in range(4):
        claim, _, recipe, _ = start(database, registered, "Mass")  # they never end
        release_trial(database, claim, reason="a test's")
        again, _, same, _ = start(database, registered, "Mass")
        assert (again.attempt, same) == (2, recipe)
