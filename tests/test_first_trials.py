"""What one label finds out, the others run next: first trials on a real Postgres."""

import tomllib

import optuna
import pytest
from optuna.trial import TrialState

from storage.claim import claim_study
from storage.database import Database
from study.claims import Claim, claim_trial, fail, open_studies
from study.experiment import parse
from study.recipes import Recipe
from study.register import Registered, make_studies
from study.search import suggest

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
    registered = Registered(parse(tomllib.loads(EXPERIMENT), source="test"), (4, 6), "index", "split")
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


def test_best_recipe_of_one_label_is_the_next_of_another(database: Database, registered: Registered) -> None:
    own = {}
    for label, aucs in {"Effusion": (0.6, 0.8), "Mass": (0.5, 0.5)}.items():
        for auc in aucs:
            claim, trial, recipe, resolution = start(database, registered, label)
            assert resolution == 64
            own[label, auc] = recipe
            claim.study.tell(trial, auc)
    best = own["Effusion", 0.8]
    for expected in (64, 32):  # new to this label at either
        claim, trial, recipe, resolution = start(database, registered, "Mass")
        assert (recipe, resolution) == (best, expected)
        assert claim.first
        claim.study.tell(trial, 0.5)
    assert best not in {start(database, registered, "Mass")[2] for _ in range(2)}


def test_recipe_that_diverged_counts_as_seeing_nothing(database: Database, registered: Registered) -> None:
    claim, trial, diverged, _ = start(database, registered, "Effusion")
    claim.study.tell(trial, state=TrialState.PRUNED)
    claim, trial, learnt, _ = start(database, registered, "Effusion")
    claim.study.tell(trial, 0.6)
    at_the_largest = start(database, registered, "Effusion")
    assert at_the_largest[2] not in (diverged, learnt), "both have run there"
    _, _, recipe, resolution = start(database, registered, "Effusion")
    assert (recipe, resolution) == (learnt, 32)


def test_resolution_whose_first_trial_failed_gets_another_recipe(database: Database, registered: Registered) -> None:
    claim, _, failed, resolution = start(database, registered, "Effusion")
    with claim_study(database, claim.study._study_id):
        fail(database, claim.study, database.storage.get_trial(claim.trial_id), reason="a test's")
    assert resolution == 64
    at_the_largest = []
    for _ in range(6):
        claim, trial, recipe, resolution = start(database, registered, "Effusion")
        claim.study.tell(trial, 0.7)
        if resolution == 64:
            at_the_largest.append(recipe)
    assert failed not in at_the_largest
    assert len(at_the_largest) == 4, "its own other one, two of the best, one in the failed one's place"
    assert len(set(at_the_largest)) == 3, "all that the two labels have but the failed one, then the best again"
