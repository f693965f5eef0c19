"""A label whose result may be chance says so before its result, wherever the result is shown."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Confirmed
from optuna_dashboard import get_note
from rich.console import Console
from scipy.stats import norm
from sqlalchemy import text

from acuity.objectives.training.prediction import load_network
from acuity.storage.database import Database, open_storage
from acuity.study.dashboard.overview import render_overview
from acuity.study.dashboard.publishing import publish_label
from acuity.study.display.answer_table import answer_table
from acuity.study.registry.claims import open_studies
from acuity.study.report.exported_network import choose_network
from acuity.study.report.network_description import describe_network
from acuity.study.report.report import write_report
from acuity.study.results.answer import Answer, read_answer, read_best_resolution
from acuity.study.results.doubts import confirmed_doubts, search_doubts
from support.confirmed_experiment import repeat_search

CHANCE = "Nodule: not shown to be better than chance on validation patients. The search's best AUC is 0.540"


def printed(answer: Answer) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(answer_table(answer))
    return stream.getvalue()


def test_a_label_at_chance_says_so_before_its_result_everywhere(
    confirmed: Confirmed, database: Database, tmp_path: Path
) -> None:
    registered = repeat_search(database, confirmed.registered)
    study = open_studies(database, registered, sampler_seed=0)["Nodule"]
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "update public.trial_values set value = 0.54 - (:best - value) / 10 where trial_id in "
                "(select trial_id from public.trials where study_id = :study)"
            ),
            {"study": study._study_id, "best": study.best_value},
        )
    answer = read_answer(database, "tiny")
    assert [len(entry.warnings) for entry in answer.labels] == [0, 1]
    write_report(database, registered, tmp_path)
    assert publish_label(database, registered, "Nodule")
    page, markdown = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    shown = {
        "terminal": (printed(answer), "best px"),
        "note": (get_note(study), "Best so far"),
        "overview": (render_overview(database, "tiny").replace("&#39;", "'"), "px, AUC 0.540"),
        "page": (page.replace("&#39;", "'"), "AUC 0.540"),
        "markdown": (markdown, "Nodule: best so far"),
    }
    for place, (written, result) in shown.items():
        assert CHANCE in written, place
        assert written.index(CHANCE) < written.index(result), place
        assert "Cardiomegaly: not shown" not in written, place
    table = read_best_resolution(database, "tiny")
    assert list(table["warning"].str.startswith(CHANCE)) == [False, True]
    assert ">Chance<" in (tmp_path / "figures" / "auc-by-resolution.svg").read_text()


def test_the_model_card_says_that_a_confirmed_network_is_not_above_chance(confirmed: Confirmed) -> None:
    with open_storage(confirmed.url) as database:
        chosen = choose_network(database, confirmed.registered, "Nodule", resolution=None, device="cpu")
    assert chosen.confirmed is not None
    network = load_network(chosen.checkpoint, chosen.hyperparameters, device=torch.device("cpu")).network
    at_chance = [each | {"auc_low": 0.5} for each in chosen.confirmed["by_resolution"]]
    poor = dataclasses.replace(chosen, confirmed=chosen.confirmed | {"by_resolution": at_chance})
    described = describe_network(confirmed.registered, poor, network, test_uses=1)
    assert described["warnings"][0].startswith("Nodule: not shown to be better than chance on test patients.")


def test_a_confirmed_resolution_is_called_the_reference(confirmed: Confirmed) -> None:
    with open_storage(confirmed.url) as database:
        answer = read_answer(database, "tiny")
    assert "reference px" in printed(answer)
    assert "best px" not in printed(answer)
    searched = dataclasses.replace(answer.labels[0].best, split="validation")  # type: ignore[type-var]
    mixed = dataclasses.replace(answer.labels[0], best=searched)
    assert "* reference" in printed(dataclasses.replace(answer, labels=(mixed, *answer.labels[1:])))


@pytest.mark.parametrize("low", [0.3, 0.4999, 0.5, 0.5001, 0.9])
def test_a_search_is_doubted_exactly_where_its_lower_limit_is_not_above_half(low: float) -> None:
    assert bool(search_doubts("Mass", auc=low + 0.05, low=low)) == (low <= 0.5)


def test_validation_and_test_disagree_where_their_difference_is_beyond_its_99_percent_interval() -> None:
    seen = set()
    for auc, validation, se, validation_se in np.random.default_rng(0).uniform(0.02, 0.98, (500, 4)):
        tested = {"resolution": 32, "auc": auc, "auc_low": 0.6, "se": se / 5}
        tested |= {"validation_auc": validation, "validation_se": validation_se / 5}
        standard_errors = abs(validation - auc) / np.sqrt((se / 5) ** 2 + (validation_se / 5) ** 2)
        doubted = standard_errors > norm.ppf(0.995)
        seen.add(bool(doubted))
        assert bool(confirmed_doubts("Mass", tested)) == doubted
    assert seen == {True, False}
    assert confirmed_doubts("Mass", tested | {"validation_se": None}) == (), "too few validation patients"
