"""`acuity confirm` and `acuity score` on a tiny experiment with real trainings."""

import io
import json
import threading
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from sqlalchemy import text

from acuity.objectives.device.device import open_device
from acuity.objectives.images.cache import ImageCache, build_cache
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.phantoms.generator import write_phantoms
from acuity.objectives.split.file import read_split_file, write_split_file
from acuity.objectives.split.split import exclude_rows
from acuity.objectives.statistics import power
from acuity.objectives.statistics.metrics import auc
from acuity.storage.confirmations import count_test_uses, find_confirmation, freeze_protocol, save_results
from acuity.storage.database import Database
from acuity.study import confirm as confirm_module
from acuity.study.confirm import confirm
from acuity.study.confirmation import scoring as scores_module
from acuity.study.confirmation.protocol import Finalist, LabelProtocol, Protocol, Run, read_protocol
from acuity.study.confirmation.scoring import Scorer, check_validation_auc, score_external, score_label, unpack
from acuity.study.dataset.design import Design, choose_design
from acuity.study.dataset.image_set import ImageSet, open_folds, open_image_set
from acuity.study.display.answer_table import answer_table, details_table, markdown_table
from acuity.study.errors import UsageError
from acuity.study.fleet.placement import FleetOptions
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, checkpoints_of, read_registered
from acuity.study.results.answer import read_answer, read_best_resolution
from acuity.study.score import score_index
from acuity.study.worker import attempt as attempt_module
from acuity.study.worker.loop import run_trials
from support.confirmed_experiment import make_context, register_experiment
from support.threads import one_thread

EXPERIMENT = """
name = "tiny"
labels = ["Cardiomegaly"]
[data]
index = "{index}"
images = "{images}"
split = "tiny.split.csv"
cache = "cache"
[search]
resolutions = [16, 32]
architectures = ["test_resnet"]
trials = 4
min_complete_per_resolution = 2
min_batch_size = 4
min_updates_per_epoch = 5
learning_rate = [1e-3, 3e-2]
[training]
epochs = 2
[confirm]
design = "held-out"
seeds = 3
nominees = 2
margin = 0.05
"""

HELD_OUT = Design("held-out", seeds=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.fixture
def registered(phantoms: Path, tmp_path: Path, database: Database) -> Registered:
    table = tomllib.loads(EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images"))
    registered, _ = register_experiment(database, table, tmp_path)
    return registered


@pytest.fixture
def searched(registered: Registered, database: Database) -> Registered:
    """A finished search with two configurations of each resolution."""
    study = optuna.load_study(storage=database.storage, study_name=study_name("tiny", "Cardiomegaly"))
    for waiting in study.get_trials(states=(TrialState.WAITING,)):
        database.storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
    for resolution in (16, 32):
        for rate in (3e-3, 1e-2):
            study.add_trial(
                create_trial(
                    value=0.80 if resolution == 32 else 0.78,
                    params={
                        "resolution": resolution,
                        "architecture": "test_resnet",
                        "learning_rate": rate,
                        "batch_size_exponent": registered.exponents[0],
                    },
                    distributions={
                        "resolution": CategoricalDistribution([16, 32]),
                        "architecture": CategoricalDistribution(["test_resnet"]),
                        "learning_rate": FloatDistribution(1e-3, 3e-2, log=True),
                        "batch_size_exponent": IntDistribution(*registered.exponents),
                    },
                    user_attrs={"batch_size": 24, "feasible_batch_size": 24, "seconds": 1.0, "auc_se": 0.05},
                )
            )
    return registered


class StopAfter(threading.Event):
    """An event that is set after a number of calls of is_set, in the middle of a training."""

    def __init__(self, questions: int | None) -> None:
        super().__init__()
        self._left = questions

    def is_set(self) -> bool:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.set()
        return super().is_set()


def fleet_here(monkeypatch: pytest.MonkeyPatch, *, questions: int | None = None) -> None:
    """Replace the worker processes by one worker in this process, which stops after a number of calls of is_set."""

    def run_fleet(database: Database, registered: Registered, *, refresh: Callable[[int], None], **_: Any) -> None:
        context = make_context(database, registered, stop=StopAfter(questions))
        run_trials(context)
        if context.stop.is_set():
            raise KeyboardInterrupt
        refresh(0)

    monkeypatch.setattr(confirm_module, "run_fleet", run_fleet)


def run(database: Database, registered: Registered, *, seeds: int | None = None) -> str:
    """Confirm, and return the printed text."""
    printed = Console(file=io.StringIO(), width=200)
    confirm(database, registered, FleetOptions(workers=1, device="cpu"), seeds=seeds, console=printed)
    return printed.file.getvalue()  # type: ignore[attr-defined]


def trainings(database: Database, state: str = "COMPLETE") -> int:
    with database.engine.connect() as connection:
        query = text("select count(*) from acuity.all_trials where confirm and state = :state")
        return connection.scalars(query, {"state": state}).one()


def kept_scores(database: Database) -> list[bytes]:
    with database.engine.connect() as connection:
        return [bytes(each) for each in connection.scalars(text("select parquet from acuity.scores order by trial_id"))]


def as_text(table: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_unfinished_search_is_rejected(registered: Registered, database: Database) -> None:
    with pytest.raises(UsageError, match=r"search of tiny is not finished \(Cardiomegaly has 0 of 4 trials\)"):
        run(database, registered)
    assert count_test_uses(database, registered.identity.split_sha256) == 0


def test_interrupted_confirmation_continues_to_the_answer_and_a_second_margin(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = read_answer(database, "tiny").labels[0]
    assert (before.reference, before.smallest_adequate, before.best.split) == (None, None, "validation")  # type: ignore[union-attr]

    # An interruption during a training freezes nothing and keeps complete trainings.
    fleet_here(monkeypatch, questions=40)
    with pytest.raises(KeyboardInterrupt):
        run(database, searched)
    interrupted = trainings(database)
    assert 0 < interrupted < 8
    assert trainings(database, "RUNNING") == 0
    assert count_test_uses(database, searched.identity.split_sha256) == 0
    assert kept_scores(database) == []

    fleet_here(monkeypatch)
    printed = run(database, searched)
    assert "At most 8 trainings (3 of each finalist, 1 of each other nominee; the largest resolution first)" in printed
    assert f"{interrupted} of them done" in printed
    assert trainings(database) == 8
    assert "Cardiomegaly retrained 8/8; done" in printed
    assert "Frozen before any score of a test patient is read" in printed
    assert "the test patients have been used once" in printed
    stored = find_confirmation(database, "tiny")
    assert stored is not None
    protocol = read_protocol(stored.protocol)
    assert (protocol.margin, protocol.design, protocol.split_sha256) == (0.05, HELD_OUT, searched.identity.split_sha256)
    (label,) = protocol.labels
    assert [len(finalist.runs) for finalist in label.finalists] == [3, 3]
    assert all(finalist.batch_size == 24 for finalist in label.finalists)
    assert label.reference == max(label.finalists, key=lambda each: each.validation_auc).resolution

    check_scores(searched, database, label)
    check_answer(database, label.reference)

    # Another call trains, scores and counts nothing. Another margin is another use of the test patients.
    first_scores = kept_scores(database)
    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "score_images", _cut_off)
        assert "the test patients have been used once" in run(database, searched)
        assert "the test patients have been used twice" in run(database, with_confirm(searched, margin=0.1))
    assert trainings(database) == 8
    assert kept_scores(database) == first_scores
    answer = read_answer(database, "tiny")
    assert answer.test_uses == 2
    assert answer.labels[0].smallest_adequate["margin"] == 0.1  # type: ignore[index]

    check_external(database, searched, tmp_path)


def cross_fit(registered: Registered, **changes: Any) -> Registered:
    return with_confirm(registered, design=None, folds=3, nominees=1, **changes)


def test_cross_fitted_confirmation_tests_each_patient_outside_validation_once_and_resumes(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed = cross_fit(searched)
    fleet_here(monkeypatch, questions=40)
    with pytest.raises(KeyboardInterrupt):
        run(database, crossed)
    interrupted = trainings(database)
    assert 0 < interrupted < 6
    assert count_test_uses(database, searched.identity.split_sha256) == 0
    assert kept_scores(database) == []

    trained = record_training_rows(monkeypatch)
    fleet_here(monkeypatch)
    printed = run(database, crossed)
    assert "Confirmation: cross-fitted, one network for each of 3 folds. At most 6 trainings" in printed
    assert "Cardiomegaly retrained 6/6; done" in printed
    assert "the test patients have been used once" in printed
    assert trainings(database) == 6
    stored = find_confirmation(database, "tiny")
    assert stored is not None
    protocol = read_protocol(stored.protocol)
    image_set = open_image_set(crossed.experiment)
    folds = open_folds(image_set, 3)
    assert folds.path.is_file()
    assert protocol.design == Design("cross-fitted", folds=3, min_folds=3, folds_sha256=folds.sha256)
    (label,) = protocol.labels
    assert [[run.fold for run in finalist.runs] for finalist in label.finalists] == [[0, 1, 2], [0, 1, 2]]

    # No network saw a patient of its fold or of validation.
    patients = image_set.index.table["patient"]
    validation = set(patients.iloc[image_set.split.rows("validation")])
    assert len(trained) >= 6 - interrupted
    for fold, rows in trained:
        seen = set(patients.iloc[rows])
        assert not seen & set(patients.iloc[folds.test_rows(fold)])
        assert not seen & validation
        assert seen | set(patients.iloc[folds.test_rows(fold)]) | validation == set(patients)

    # All scores are kept with fold and seed, and each image outside validation is scored once per resolution.
    with database.engine.connect() as connection:
        rows = connection.execute(
            text("select s.fold, s.seed, t.resolution, t.fold, t.seed, s.parquet from acuity.scores s "
                 "join acuity.all_trials t using (trial_id) order by trial_id")
        ).all()  # fmt: skip
    assert len(rows) == 6
    for px in (16, 32):
        tables = {row[0]: unpack(bytes(row[5])) for row in rows if row[2] == px}
        assert set(tables) == {0, 1, 2}
        tested = [image for table in tables.values() for image in table.loc[table["part"] == "test", "image"]]
        outside = [*image_set.split.rows("training"), *image_set.split.rows("test")]
        assert len(tested) == len(set(tested)) == len(outside)
        assert len({tuple(table.loc[table["part"] == "validation", "image"]) for table in tables.values()}) == 1
    assert all((row[0], row[1]) == (row[3], row[4]) for row in rows)

    (entry,) = json.loads(json.dumps(read_answer(database, "tiny").to_json()))["labels"]
    assert entry["confirmation"]["design"]["kind"] == "cross-fitted"
    assert entry["confirmation"]["patients"] == len(set(patients) - validation)
    assert (entry["best"]["split"], entry["best"]["seeds"]) == ("test", 3)
    assert read_best_resolution(database, "tiny")["design"].tolist() == ["cross-fitted"]

    # The same protocol trains, scores and counts nothing. A held-out one is another use, with its own networks.
    first_scores = kept_scores(database)
    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "score_images", _cut_off)
        assert "used once" in run(database, crossed)
    assert kept_scores(database) == first_scores
    assert "used twice" in run(database, with_confirm(searched, nominees=1))
    assert trainings(database) == 12
    (entry,) = json.loads(json.dumps(read_answer(database, "tiny").to_json()))["labels"]
    assert entry["confirmation"]["design"]["kind"] == "held-out"
    assert entry["confirmation"]["patients"] == len(set(patients.iloc[image_set.split.rows("test")]))


def test_confirmation_with_enough_power_leaves_folds_out_of_training_and_test(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a margin of .45 these few patients give the power with two of the three folds."""
    fleet_here(monkeypatch)
    monkeypatch.setattr(power, "MIN_POSITIVE_PATIENTS", 2)
    crossed = cross_fit(searched, margin=0.45, min_folds=2)
    assert "retrained 4/4; done" in run(database, crossed)
    assert trainings(database) == 4
    image_set = open_image_set(crossed.experiment)
    folds, patients = open_folds(image_set, 3), image_set.index.table["patient"]
    tested = {patients.iloc[row] for fold in (0, 1) for row in folds.test_rows(fold)}
    (entry,) = json.loads(json.dumps(read_answer(database, "tiny").to_json()))["labels"]
    assert entry["confirmation"]["patients"] == len(tested)
    assert entry["best"]["seeds"] == 2
    shown = as_text(answer_table(read_answer(database, "tiny")))
    assert "cross-fitted: 2 of 3 folds of the patients outside validation" in " ".join(shown.split())
    with database.engine.connect() as connection:
        assert set(connection.scalars(text("select fold from acuity.scores"))) == {0, 1}
    # All folds on request are another use of the test patients.
    assert "used twice" in run(database, with_confirm(crossed, min_folds=3))
    assert trainings(database) == 6


def test_a_further_fold_is_trained_where_the_first_folds_have_few_of_the_positive_patients(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter or a label that comes later can put most positive patients into the last fold."""
    crossed = cross_fit(searched, margin=0.45, min_folds=2)
    image_set = open_image_set(crossed.experiment)
    index, made = image_set.index, open_folds(image_set, 3)
    content = read_split_file(made.path, names=("1", "2", "3"))
    assert content is not None
    positive = sorted(set(index.table["patient"][index.target("Cardiomegaly") == 1]) & content.parts.keys())
    parts = content.parts | {patient: min(number // 2, 2) for number, patient in enumerate(positive)}
    write_split_file(made.path, replace(content, parts=parts))
    monkeypatch.setattr(power, "MIN_POSITIVE_PATIENTS", 5)  # two folds have 4, and two thirds of all are more than 5
    assert len(positive) > 8
    fleet_here(monkeypatch)
    assert "retrained 6/6; done" in run(database, crossed)


def record_training_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """The fold and the training rows of each training from now on."""
    recorded: list[tuple[int, Any]] = []
    train_claimed = attempt_module.train_claimed

    def record(context: Any, claim: Any, configuration: Any, data: Any, reporter: Any) -> Any:
        recorded.append((claim.inherited["fold"], data.training) if "fold" in claim.inherited else (-1, data.training))
        return train_claimed(context, claim, configuration, data, reporter)

    monkeypatch.setattr(attempt_module, "train_claimed", record)
    return recorded


def test_changed_folds_stop_the_confirmation_before_test_patients_are_scored(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_here(monkeypatch)
    crossed = cross_fit(searched, resolutions=(16,))
    with monkeypatch.context() as patch:
        patch.setattr(confirm_module, "score_label", _cut_off)
        with pytest.raises(RuntimeError, match="cut off"):
            run(database, crossed)
    assert count_test_uses(database, searched.identity.split_sha256) == 1, "the protocol is frozen before any score"
    assert trainings(database) == 3
    folds = open_folds(open_image_set(crossed.experiment), 3)
    content = read_split_file(folds.path, names=("1", "2", "3"))
    assert content is not None
    changed = {patient: (fold + 1) % 3 for patient, fold in content.parts.items()}
    write_split_file(folds.path, replace(content, parts=changed))
    assert "At most 3 trainings" in run(database, crossed), "other folds are another protocol"
    assert trainings(database) == 6
    assert count_test_uses(database, searched.identity.split_sha256) == 2


def test_published_test_part_is_confirmed_held_out_unless_the_file_says_otherwise(
    registered: Registered, tmp_path: Path
) -> None:
    data = registered.experiment.data
    patients = open_image_set(registered.experiment).index.table[["file", "patient"]]
    test = patients[patients["patient"].isin(patients["patient"].unique()[:25])]
    (tmp_path / "test_list.txt").write_text("\n".join(Path(file).name for file in test["file"]))
    published = replace(
        cross_fit(registered).experiment,
        data=replace(data, test_list=tmp_path / "test_list.txt", split=tmp_path / "published.csv"),
    )
    by_default = cross_fit(registered).experiment
    assert choose_design(by_default, open_image_set(by_default)).kind == "cross-fitted"
    assert choose_design(published, open_image_set(published)) == Design("held-out", seeds=3)
    named = replace(published, confirm=replace(published.confirm, design="cross-fitted"))
    assert choose_design(named, open_image_set(named)).kind == "cross-fitted"


def test_seeds_of_a_cross_fitted_confirmation_are_rejected(searched: Registered, database: Database) -> None:
    with pytest.raises(UsageError, match=r"--seeds is 4, but the confirmation is cross-fitted: set \[confirm\] folds"):
        run(database, cross_fit(searched), seeds=4)


def with_confirm(registered: Registered, **changes: Any) -> Registered:
    section = replace(registered.experiment.confirm, **changes)
    return replace(registered, experiment=replace(registered.experiment, confirm=section))


def check_scores(registered: Registered, database: Database, label: Any) -> None:
    """Each network scored each validation and test image once, under a pseudonym, with its training's AUC."""
    image_set = open_image_set(registered.experiment)
    tables = [unpack(parquet) for parquet in kept_scores(database)]
    assert len(tables) == 6
    runs = sorted((run for finalist in label.finalists for run in finalist.runs), key=lambda run: run.trial_id)
    for run_of_finalist, table in zip(runs, tables, strict=True):
        validation = table[table["part"] == "validation"]
        assert auc(validation["target"], validation["score"]) == pytest.approx(
            run_of_finalist.validation_auc, abs=1e-12
        )
        counts = table["part"].value_counts()
        assert {part: counts[part] for part in ("validation", "test")} == {
            part: len(image_set.split.rows(part)) for part in ("validation", "test")
        }
        own = image_set.index.table
        for names in ("file", "patient"):
            assert not set(own[names]) & set(table.astype(str).to_numpy().ravel()), names
        test_rows = image_set.split.rows("test")
        patients = own["patient"].iloc[test_rows]
        pseudonyms = table.loc[table["part"] == "test", "patient"]
        assert (
            patients.nunique()
            == pseudonyms.nunique()
            == pd.Series(list(zip(patients, pseudonyms, strict=True))).nunique()
        )


def check_answer(database: Database, reference: int) -> None:
    """The JSON, the views, the tables and the DataFrame agree."""
    answer = read_answer(database, "tiny")
    (entry,) = json.loads(json.dumps(answer.to_json()))["labels"]
    assert (entry["best"]["resolution"], entry["best"]["split"], entry["best"]["seeds"]) == (reference, "test", 3)
    assert entry["reference"] == {"resolution": reference, "auc": entry["best"]["auc"]}
    assert entry["smallest_adequate"]["verdict"] == "not_estimable", "a dozen test patients have the finding"
    assert {"verdict", "resolution", "auc_difference", "margin", "p_value"} <= set(entry["smallest_adequate"])
    assert [at["split"] for at in entry["by_resolution"]] == ["test", "test"]

    table = read_best_resolution(database, "tiny")
    assert list(table["resolution"]) == [reference]
    assert table["auc"].iloc[0] == entry["best"]["auc"]
    assert "| not_estimable |" in markdown_table(table)
    with database.engine.connect() as connection:
        rows = pd.read_sql(text("select * from acuity.auc_by_resolution order by resolution"), connection)
    for row, at in zip(rows.to_dict("records"), entry["by_resolution"], strict=True):
        assert {key: row[key] for key in at} == at

    shown = as_text(answer_table(answer))
    assert "not estimable" in shown
    assert "used once" in shown
    details = as_text(details_table(answer.labels[0]))
    assert "16 px less 32 px" in details
    assert "Ratio of AUCs" in details or reference == 16
    with pytest.raises(UsageError, match='no label "Mass"'):
        read_answer(database, "tiny", label="Mass")


def write_other_patients(folder: Path) -> Path:
    """60 phantoms with other names of patients and files than the experiment's images."""
    index = write_phantoms(folder, images=60, size=64, seed=5)
    header, *lines = index.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for row in rows:
        (folder / "images" / row[0]).rename(folder / "images" / f"9{row[0][1:]}")
        row[0], row[3] = f"9{row[0][1:]}", str(90_000_000 + int(row[3]))
    index.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return index


def check_external(database: Database, registered: Registered, folder: Path) -> None:
    other = write_other_patients(folder / "other")
    console = Console(file=io.StringIO())
    scored = score_index(database, registered, other, images=None, device="cpu", console=console)
    again = score_index(database, registered, other, images=None, device="cpu", console=console)
    assert scored == again
    (label,) = scored
    assert label["images"] == 60
    assert label["best"]["split"] == "external"
    assert count_test_uses(database, registered.identity.split_sha256) == 2
    with pytest.raises(UsageError, match="the experiment's own index"):
        score_index(database, registered, registered.experiment.data.index, images=None, device="cpu", console=console)


def test_missing_or_exchanged_network_is_rejected_before_test_patients_are_scored(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_here(monkeypatch)
    searched = with_confirm(searched, resolutions=(32,))
    with monkeypatch.context() as patch:
        patch.setattr(confirm_module, "freeze_protocol", _cut_off)
        with pytest.raises(RuntimeError, match="cut off"):
            run(database, searched)
    checkpoints = sorted((searched.experiment.data.cache or Path()).rglob("*.ckpt"))
    kept = {path: path.read_bytes() for path in checkpoints}
    for path in checkpoints:
        path.unlink()
    with pytest.raises(UsageError, match="run this where the fleet's checkpoints are"):
        run(database, searched)
    for path, other in zip(checkpoints, reversed(checkpoints), strict=True):
        path.write_bytes(kept[other])
    with pytest.raises(UsageError, match="it is not the one that was trained"):
        run(database, searched)
    assert kept_scores(database) == []


def test_another_confirmation_that_changes_the_plan_is_named_as_the_cause(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both confirm the same experiment at the same time, with other numbers of seeds."""
    fleet_here(monkeypatch)
    run_fleet = confirm_module.run_fleet

    def confirm_elsewhere(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(confirm_module, "run_fleet", run_fleet)
        run(database, searched, seeds=3)
        run_fleet(*arguments, **options)

    monkeypatch.setattr(confirm_module, "run_fleet", confirm_elsewhere)
    with pytest.raises(UsageError, match="another `acuity confirm` has changed its plan meanwhile") as refused:
        run(database, searched, seeds=4)
    assert "then run this command again. Complete trainings are kept" in str(refused.value)
    assert "used twice" in run(database, searched, seeds=4), "as the message says"
    assert trainings(database) == 10


def test_workers_that_were_stopped_are_named_where_the_plan_is_unchanged(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirm_module, "run_fleet", lambda *_, **__: None)
    with pytest.raises(UsageError, match="its workers were stopped"):
        run(database, searched)


@pytest.mark.parametrize(
    ("positives", "negatives", "pairs", "is_refused"),
    [
        (5, 5, 4, False),
        (5, 5, 5, True),
        (10, 40, 4, False),
        (10, 40, 5, True),
        (100, 100, 99, False),
        (100, 100, 101, True),
    ],
)
def test_few_pairs_in_another_order_are_the_rounding_of_another_device(
    positives: int, negatives: int, pairs: int, is_refused: bool
) -> None:
    """In the training these pairs of a positive and a negative image were ordered wrongly, now no pair is."""
    targets = np.repeat([1, 0], [positives, negatives])
    scores = targets.astype(np.float64)
    run = replace(runs_of(32)[0], validation_auc=1 - pairs / (positives * negatives))
    if is_refused:
        with pytest.raises(UsageError, match="it is not the one that was trained"):
            check_validation_auc(targets, scores, run, resolution=32)
    else:
        check_validation_auc(targets, scores, run, resolution=32)


def _cut_off(*_: Any, **__: Any) -> None:
    raise RuntimeError("cut off")


@pytest.mark.usefixtures("searched")
def test_before_confirmation_the_views_and_best_show_the_search(database: Database) -> None:
    entry = read_answer(database, "tiny").labels[0]
    with database.engine.connect() as connection:
        rows = pd.read_sql(text("select * from acuity.auc_by_resolution order by resolution"), connection)
    for row, at in zip(rows.to_dict("records"), entry.by_resolution, strict=True):
        for key, value in vars(at).items():
            assert row[key] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), key
    (best,) = read_best_resolution(database, "tiny").to_dict("records")
    assert entry.best is not None
    for key, value in vars(entry.best).items():
        assert best[key] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), key
    assert best["verdict"] is None
    assert "optimistic" in as_text(answer_table(read_answer(database, "tiny")))
    with pytest.raises(UsageError, match="tiny is not confirmed"):
        score_index(
            database, read_registered(database, "tiny"), Path("x.csv"), images=None, device="cpu", console=Console()
        )


def runs_of(px: int) -> tuple[Run, ...]:
    return tuple(Run(px + seed, "s", origin=seed, attempt=1, seed=seed, validation_auc=0.8) for seed in range(3))


LABEL = LabelProtocol(
    "Cardiomegaly",
    reference=32,
    finalists=tuple(
        Finalist(resolution, "test_resnet", 24, 24, 1e-3, trials=2, nominees=1, runs=runs_of(resolution))
        for resolution in (16, 32)
    ),
    skipped=(),
)


class MeanGrey:
    """Replaces the networks: the score of an image is its mean grey. Raises KeyboardInterrupt after `most` networks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, most: int | None = None) -> None:
        self.scored = 0
        self.most = most
        monkeypatch.setattr(scores_module, "_score_run", self)

    def __call__(self, _scorer: Any, pixels: Any, _target: Any, _finalist: Any, _run: Any, parts: Any) -> Any:
        if self.scored == self.most:
            raise KeyboardInterrupt
        self.scored += 1
        return pixels[np.concatenate(list(parts.values()))].mean(axis=(1, 2)) / 255


@pytest.fixture
def scorer(registered: Registered, database: Database) -> Scorer:
    return Scorer(database, registered.experiment, checkpoints_of(registered), open_device("cpu", workers=1, threads=1))


def score_others(scorer: Scorer, index: Path, folder: Path) -> list[pd.DataFrame]:
    """All tables of scores of the label. Unreadable images of the index are dropped."""
    others, cache = open_others(index, folder)
    tables = score_external(scorer, others, cache, LABEL, done=lambda: None)
    return [table for seeds in tables.values() for table in seeds]


def open_others(index: Path, folder: Path) -> tuple[ImageIndex, ImageCache]:
    others = read_index(index, images=index.parent / "images")
    return others, build_cache(others, folder=folder, resolutions=[16, 32], on_bad_image="drop", processes=1)


def test_changed_external_images_are_scored_again(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index, cache = write_other_patients(tmp_path / "other"), tmp_path / "arrays"
    networks = MeanGrey(monkeypatch)
    before = score_others(scorer, index, cache)
    score_others(scorer, index, cache)
    assert networks.scored == 6, "scores of unchanged images are read from the database"

    images = sorted((index.parent / "images").iterdir())
    for path in images:
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    inverted = score_others(scorer, index, cache)
    assert networks.scored == 12
    for table, earlier in zip(inverted, before, strict=True):
        assert np.allclose(table["score"] + earlier["score"], 1, atol=0.01)

    whole = images[0].read_bytes()
    images[0].write_bytes(whole[:200])
    fewer = score_others(scorer, index, cache)
    assert [len(table) for table in fewer] == [59] * 6
    assert [len(unpack(parquet)) for parquet in kept_scores(scorer.database)] == [59] * 6, "stale scores are replaced"
    images[0].write_bytes(whole)
    for table, earlier in zip(score_others(scorer, index, cache), inverted, strict=True):
        pd.testing.assert_frame_equal(table, earlier)


def test_stored_scores_of_other_rows_or_pixels_prevent_scoring(
    registered: Registered, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_set = open_image_set(registered.experiment)
    test = image_set.split.rows("test")
    networks = MeanGrey(monkeypatch, most=2)

    def score(images: ImageSet, label: LabelProtocol = LABEL) -> dict[int, list[pd.DataFrame]]:
        return score_label(scorer, images, label, HELD_OUT, done=lambda: None)

    without_one = replace(image_set, split=exclude_rows(image_set.split, test[:1]))
    with pytest.raises(KeyboardInterrupt):
        score(without_one)
    networks.most = None
    count = len(unpack(kept_scores(scorer.database)[0]))
    whole, another = image_set, replace(image_set, split=exclude_rows(image_set.split, test[1:2]))
    repaired = replace(without_one, cache=replace(image_set.cache, key="of other files"))
    for changed, said in (
        (whole, f"it scored {count} images then and would score {count + 1} now. Put the images back"),
        (another, "other images are left out now .* than then"),
        (repaired, "the images' files have changed since"),
    ):
        with pytest.raises(UsageError, match=f"s at 16 px, seed 0 has scored its test patients.*{said}"):
            score(changed)
    with pytest.raises(UsageError, match="has scored its test patients"):
        score(whole, replace(LABEL, finalists=LABEL.finalists[::-1]))
    assert networks.scored == 2, "no network scored, not even a network without stored scores"

    tables = score(without_one)
    assert networks.scored == 6
    assert len({tuple(table["image"]) for seeds in tables.values() for table in seeds}) == 1


def test_pseudonyms_do_not_depend_on_folders(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    MeanGrey(monkeypatch)
    flat = write_other_patients(tmp_path / "flat")
    nested = write_other_patients(tmp_path / "nested")
    (nested.parent / "images").rename(nested.parent / "images_001")
    (nested.parent / "images").mkdir()
    (nested.parent / "images_001").rename(nested.parent / "images" / "images_001")
    one, other = (open_others(index, tmp_path / index.parent.name / "arrays")[0] for index in (flat, nested))
    assert list(one.table["file"]) != list(other.table["file"])
    assert one.sha256 == other.sha256
    score_others(scorer, flat, tmp_path / "arrays")
    (parquet, *_) = kept_scores(scorer.database)
    with scorer.database.engine.begin() as connection:
        connection.execute(text("delete from acuity.scores"))
    score_others(scorer, nested, tmp_path / "arrays")
    (again, *_) = kept_scores(scorer.database)
    for column in ("image", "patient"):
        assert list(unpack(parquet)[column]) == list(unpack(again)[column]), column


def test_external_index_with_images_or_patients_of_the_experiment_is_rejected(
    registered: Registered, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = Protocol(
        "tiny",
        registered.identity.index_sha256,
        registered.identity.split_sha256,
        margin=0.05,
        design=HELD_OUT,
        labels=(LABEL,),
    )
    stored = freeze_protocol(
        database,
        "tiny",
        protocol.to_table(),
        split_sha256=registered.identity.split_sha256,
        test_patients_sha256=registered.identity.split_sha256,
        margin=0.05,
        labels=["Cardiomegaly"],
    )
    save_results(database, stored.id, {"labels": []})
    own = registered.experiment.data
    header, *lines = own.index.read_text().splitlines()

    def score(index: Path, images: Path, which: Registered = registered) -> None:
        score_index(database, which, index, images=images, device="cpu", console=Console(file=io.StringIO()))

    resorted = tmp_path / "resorted.csv"
    resorted.write_text("\n".join([header, *reversed(lines[1:])]) + "\n")
    patients = len({line.split(",")[3] for line in lines[1:]})
    with pytest.raises(UsageError, match=f"239 of its 239 images and {patients} of its {patients} patients") as refused:
        score(resorted, own.images)
    assert not [line for line in lines if line.split(",")[0] in str(refused.value)]

    # 60 external images, of which one belongs to a patient of the experiment.
    other = write_other_patients(tmp_path / "other")
    first, *rest = other.read_text().splitlines()[1:]
    cells = first.split(",")
    cells[3] = lines[0].split(",")[3]
    other.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    with pytest.raises(UsageError, match=r"0 of its 60 images and 1 of its \d+ patients .* Leave them out"):
        score(other, other.parent / "images")

    # Without the experiment's index a warning is logged. Scoring then fails because the networks are missing.
    gone = replace(registered.experiment, data=replace(own, index=tmp_path / "gone.csv"))
    with pytest.raises(UsageError, match="run this where the fleet's checkpoints are"):
        score(other, other.parent / "images", replace(registered, experiment=gone))
    assert "other/Data_Entry.csv has images or patients of tiny could not be checked" in caplog.text
