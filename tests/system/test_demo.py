"""`acuity demo` with real workers, from the phantoms to the report. It trains for minutes."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from acuity.objectives.phantoms.truth import TRUTH
from acuity.storage.database import open_storage
from acuity.study.results.answer import read_answer
from support.commands import acuity


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demos_search_finds_resolutions_that_suffice_for_the_phantoms(
    tmp_path: Path, environment: Mapping[str, str], database_url: str
) -> None:
    folder = tmp_path / "demo"
    acuity("demo", "--folder", str(folder), environment=environment)
    with open_storage(database_url) as database:
        answer = read_answer(database, "demo")
    assert {entry.label for entry in answer.labels} == set(TRUTH)
    for entry in answer.labels:
        assert entry.best is not None
        assert entry.best.resolution >= TRUTH[entry.label].smallest_adequate, entry
        assert entry.best.auc_low > 0.6, entry  # not the largest of nine AUCs around 0.5
    assert (folder / "report" / "report.html").is_file()
