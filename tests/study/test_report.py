"""The report: a page that needs no network, the same in Markdown, figures for a paper, and the methods section."""

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from sqlalchemy import text

from acuity.objectives.training import augmentation
from acuity.objectives.training.train import MAX_POSITIVE_WEIGHT
from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database, open_storage
from acuity.study.cli.main import acuity
from acuity.study.config.loading import parse
from acuity.study.config.paths import resolve_paths
from acuity.study.confirmation.nomination import SkippedResolution
from acuity.study.confirmation.protocol import read_protocol
from acuity.study.dataset.demographics import read_demographics
from acuity.study.dataset.design import Design
from acuity.study.dataset.image_set import open_image_set
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.registry.register import register
from acuity.study.report import methods as methods_module
from acuity.study.report import page as page_module
from acuity.study.report import report as report_module
from acuity.study.report.auc_figure import auc_alt, auc_panel
from acuity.study.report.batch_figure import cell_kinds
from acuity.study.report.report import write_report
from acuity.study.report.style import figure_style, inline_svg
from acuity.study.results.answer import LabelAnswer, ResolutionAnswer, read_answer
from acuity.study.results.summary import summarise_search
from support.confirmed_experiment import EXPERIMENT, fill_search
from support.image_identities import unfiltered

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def folder(confirmed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The confirmed experiment's report, in a folder where another user has planted links."""
    out = tmp_path_factory.mktemp("report")
    for name in ("report.html", ".report.html.tmp"):
        (out / name).symlink_to(out / "theirs")
    with open_storage(confirmed.url) as database:
        write_report(database, confirmed.registered, out)
    return out


def test_planted_links_do_not_lead_a_report_to_another_file(folder: Path) -> None:
    assert (folder / "report.html").is_file()
    assert not (folder / "report.html").is_symlink()
    assert not (folder / "theirs").exists()


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(page)
    return parser.tags


def test_page_loads_nothing_from_outside(page: str) -> None:
    tags = _tags(page)
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in page
    references = [value for _, attributes in tags for key, value in attributes.items() if key.endswith(("href", "src"))]
    assert references
    assert all(value and value.startswith("#") for value in references)
    assert any(attributes.get("http-equiv") == "Content-Security-Policy" for _, attributes in tags)


def test_every_figure_has_an_alternative_text_and_unique_ids(page: str) -> None:
    pictures = [attributes for tag, attributes in _tags(page) if tag == "svg"]
    assert len(pictures) == 2 + 2 + 1 + 2  # labels, architectures, importance, pruning and cost
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 40
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {one or other for one, other in used} <= set(names)


def test_report_has_the_confirmed_numbers_and_marks_those_of_validation_patients(confirmed, folder: Path) -> None:
    with open_storage(confirmed.url) as database:
        answer = read_answer(database, "tiny")
    page, markdown = ((folder / name).read_text() for name in ("report.html", "report.md"))
    for written in (page, markdown):
        for entry in answer.labels:
            assert entry.smallest_adequate["sentence"] in written  # type: ignore[index]
            for at in entry.by_resolution:
                assert f"{at.auc:.3f}" in written
    assert page.count('<td class="val">') == 2, "64 px was not confirmed for either label"
    assert "Confirmed on test patients" in page
    assert "used 1 time" in page
    counted = re.search(r"^\| patients \|(.*)\|$", markdown, re.MULTILINE)
    assert counted is not None
    split = open_image_set(confirmed.registered.experiment)
    patients = split.index.table["patient"]
    assert [int(cell) for cell in counted[1].split("|")] == [
        patients.iloc[split.split.rows(part)].nunique() for part in ("training", "validation", "test")
    ]


def test_methods_section_has_every_number_that_the_checklists_require(page: str) -> None:
    methods = re.sub(r"<[^>]+>", "", page[page.index("Methods, for a paper") :])
    for item in ("19, 20", "CLAIM 25", "24, 25", "CLAIM 26", "28, 29", "12c", "16, 21", "AI 18", "23a"):
        assert item in methods
    for said in (
        "by patient (each patient in one part only)",
        "image resolution (16, 32 and 64 px)",
        "architecture (test_resnet and test_efficientnet)",
        "log-uniform from 0.001 to 0.03",
        "24 finished trials, 48 in all",
        "tree-structured Parzen estimator",
        "the configuration with the highest validation AUC was retrained with other seeds",
        "divided by patient, stratified over all labels, into 3 folds (SHA-256",
        "Each network was trained without one fold and tested on the patients of that fold",
        "Each finalist was trained once without each fold.",
        "training patients is not part of the variance",
        "Finalists (12 networks)",
        "at a margin of 0.05 AUC",
        "have been used once",
        "patient-clustered DeLong",
        f"up to {augmentation.ROTATION_DEGREES:.0f} degrees",
        f"translation ({augmentation.TRANSLATION:.0%}".replace("%", " %"),
        f"scaling ({augmentation.SCALE:.0%}".replace("%", " %"),
        f"weight of a positive at most {MAX_POSITIVE_WEIGHT:.0f}",
        "outputs are therefore not calibrated probabilities",
        "each against every larger confirmed resolution",
        "level of 5 % holds for each label. It was not adjusted for the number of labels",
        "fewer than 30 positive or 10 negative test patients",
    ):
        assert said in methods, said
    assert "a finding is rare" not in methods, "Cardiomegaly and Nodule may be common"
    results = page[page.index("Results.</b>") : page.index("Protocol, code and data.</b>")]
    assert "<mark>" not in results, "the author has nothing to add to the results"
    assert "[source and how they were made]" in methods


def test_methods_of_a_held_out_confirmation_name_the_test_part_and_the_seeds(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        stored = find_confirmation(database, "tiny")
    assert stored is not None
    held_out = replace(read_protocol(stored.protocol), design=Design("held-out", seeds=5))
    choice = methods_module._choice(confirmed.registered.experiment, held_out)
    assert "Each finalist was trained 5 times on the training patients and tested on the test part." in choice
    assert "fold" not in choice + methods_module._statistics(held_out)
    assert "AUCs are means over seeds." in methods_module._statistics(held_out)


def test_methods_of_folds_that_follow_one_after_another_say_what_ended_them(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        stored = find_confirmation(database, "tiny")
    assert stored is not None
    protocol = read_protocol(stored.protocol)
    sequential = replace(protocol, design=replace(protocol.design, folds=4, min_folds=3))
    choice = methods_module._choice(confirmed.registered.experiment, sequential)
    assert "Between 3 and 4 folds were trained, one after another." in choice
    assert "Each finalist was trained in 3 folds." in choice


def test_methods_name_resolutions_and_nominees_of_the_protocol_and_not_of_the_file_since(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        stored = find_confirmation(database, "tiny")
    assert stored is not None
    experiment, protocol = confirmed.registered.experiment, read_protocol(stored.protocol)
    assert experiment.confirm.resolutions == (16, 32)
    first, *others = protocol.labels
    not_needed = replace(
        first,
        finalists=first.finalists[1:],
        reference=32,
        skipped=(SkippedResolution(16, "not_needed", 0.6), SkippedResolution(64, "not_named", 0.7)),
    )
    assert "At each of 16 and 32 px, the configuration with the highest" in methods_module._choice(
        experiment, replace(protocol, labels=(not_needed, *others))
    ), "16 px was named, although no further training of it was needed"
    later = replace(experiment, confirm=replace(experiment.confirm, nominees=3))
    assert "the configuration with the highest validation AUC was" in methods_module._choice(later, protocol)


def test_report_says_which_labels_were_added_after_the_confirmation(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        contents = report_module._gather(database, confirmed.registered)
    first, second = contents.answer.labels
    added = replace(second, reference=None, smallest_adequate=None, confirmation=None)
    later = replace(contents, answer=replace(contents.answer, labels=(first, added)))
    with figure_style():
        written = page_module.render_page(later), page_module.render_markdown(later)
    for text_of_report in written:
        assert f"Confirmed on test patients: {first.label}. No" in text_of_report
        assert f"Search only, optimistic, no verdict: {second.label}." in text_of_report
    assert contents.stored is not None
    experiment, protocol = confirmed.registered.experiment, read_protocol(contents.stored.protocol)
    without_second = replace(protocol, labels=protocol.labels[:1])
    assert f"{second.label} was not confirmed." in methods_module._choice(experiment, without_second)
    assert "not confirmed" not in methods_module._choice(experiment, protocol)


def test_methods_leave_to_the_author_what_functions_of_the_user_do(confirmed) -> None:
    experiment = confirmed.registered.experiment
    own = replace(experiment.training, augmentation="mine:augment", loss="mine:loss", epochs=1)
    for architectures, built in (
        (("mine:net",), "[say how mine:net was built and initialised], was trained for 1 epoch in"),
        (("resnet34", "mine:net"), "randomly initialised or [say how mine:net was built and initialised], was"),
    ):
        search = replace(experiment.search, architectures=architectures)
        written = methods_module._training(replace(experiment, training=own, search=search))
        assert built in written
        assert "the loss mine:loss [say what it is]. Outputs were not recalibrated" in written
        assert "augmented by mine:augment [say how]." in written
        for builtin in ("cross-entropy", "rotation", "without mirroring"):
            assert builtin not in written
    whole = replace(experiment, training=replace(experiment.training, train="mine:train", epochs=3))
    written = methods_module._training(whole)
    assert "was trained for 3 epochs in fp32 by mine:train [say its optimiser, schedule, loss and augm" in written
    for builtin in ("AdamW", "one-cycle", "cross-entropy", "rotation", "not augmented"):
        assert builtin not in written


def test_methods_name_a_published_split_of_the_index_and_other_uses_of_the_test_patients(confirmed) -> None:
    registered = confirmed.registered
    cohort = read_demographics(registered)
    assert cohort is not None
    assert "were allocated at random" in methods_module._data(registered, cohort)
    of_publisher = methods_module._data(registered, replace(cohort, published=True))
    assert "were divided by the publisher's split" in of_publisher
    assert "at random" not in of_publisher
    assert "[unless the index has a published split]" in methods_module._data(registered, None)
    data = replace(registered.experiment.data, split_by="image")
    by_image = replace(registered, experiment=replace(registered.experiment, data=data))
    assert "published split" not in methods_module._data(by_image, None), "the two exclude each other"
    with open_storage(confirmed.url) as database:
        stored, answer = find_confirmation(database, "tiny"), read_answer(database, "tiny")
    assert answer.test_uses == 1
    assert "before a score of a test patient was read" in methods_module._open_science(registered, stored, answer)
    again = methods_module._open_science(registered, stored, replace(answer, test_uses=2))
    assert "have been used twice [say which of their scores were known before]" in again
    assert "before a score" not in again


def test_figures_for_a_paper_are_complete_and_contain_text_as_text(folder: Path) -> None:
    names = {"auc-by-resolution", "batch-size", "importance", "pruning-and-cost"}
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("pdf", "svg", "png")
    }
    for name in names:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        drawn = ElementTree.parse(folder / "figures" / f"{name}.svg").getroot()
        words = " ".join("".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text"))
        assert "(px)" in words or "PED-ANOVA" in words
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert round(picture.info["dpi"][0]) == 600


def test_link_in_the_figures_folder_is_replaced_and_not_followed(confirmed, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another user's")
    out = tmp_path / "report"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "batch-size.pdf").symlink_to(other)
    with open_storage(confirmed.url) as database:
        write_report(database, confirmed.registered, out)
    assert other.read_text() == "another user's"
    assert (out / "figures" / "batch-size.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_the_whole_page_at_this_width(
    folder: Path, browser: "Browser", tmp_path: Path, width: int
) -> None:
    """Wide tables scroll, and their captions and labels stay in place."""
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto((folder / "report.html").as_uri())
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    right = "(names) => [...document.querySelectorAll(names)].map(each => each.getBoundingClientRect().right)"
    assert max(page.evaluate(right, "h1, h2, p, figcaption, caption, tbody th, svg")) <= width
    page.evaluate("for (const each of document.querySelectorAll('.scroll')) each.scrollLeft = 200")
    left = "() => [...document.querySelectorAll('tbody th:first-child')].map(each => each.getBoundingClientRect().left)"
    assert min(page.evaluate(left)) >= 0


def test_report_names_no_file_and_no_folder_of_the_images(confirmed, folder: Path) -> None:
    written = "".join((folder / name).read_text() for name in ("report.html", "report.md"))
    index = open_image_set(confirmed.registered.experiment).index
    assert not [name for name in index.table["file"] if name in written]
    assert str(index.path.parent) not in written


def test_before_confirmation_the_report_is_marked_optimistic(
    confirmed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acuity.study.report.report.find_confirmation", lambda *_: None)
    monkeypatch.setattr("acuity.study.results.answer.find_confirmation", lambda *_: None)
    with open_storage(confirmed.url) as database:
        write_report(database, confirmed.registered, tmp_path)
    for written in ((tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()):
        assert "Search only: validation patients, optimistic, no verdict" in written
        assert "No result here is of test patients" in written
        assert "Confirmed on test patients" not in written
    page = (tmp_path / "report.html").read_text()
    assert "test patients, mean of the networks" not in page, "no figure or table has them"
    assert "▲ and band" not in page


def test_colours_of_the_batch_sizes_have_a_bar_and_figures_in_the_page_are_no_images(folder: Path) -> None:
    """The page's policy blocks images, also those inside an SVG."""
    page = (folder / "report.html").read_text()
    bars = page.count(">AUC lost</text>")
    assert bars == page.count(">Batch size (images)</text>") == 2, "one for each architecture"
    assert "<image" not in page


@pytest.mark.parametrize(("largest", "kinds"), [(64, {"tried", "not tried"}), (16, {"tried", "infeasible"})])
def test_kinds_of_cells_are_those_that_the_batch_figure_draws(largest: int, kinds: set[str]) -> None:
    tried = [(32, 16), (32, 32), (32, 64), (64, 16)]
    batches = pd.DataFrame(tried, columns=["resolution", "batch"]).assign(architecture="test_resnet", auc=0.8)
    cells = pd.DataFrame({"architecture": ["test_resnet"] * 2, "resolution": [32, 64], "feasible": [64, largest]})
    summary = SimpleNamespace(batches=batches, cells=cells)
    assert cell_kinds([summary], architectures=("test_resnet",), resolutions=(32, 64)) == kinds  # type: ignore[list-item]


def test_report_of_an_experiment_without_a_complete_trial_is_refused(
    confirmed, database: Database, tmp_path: Path
) -> None:
    registered: Registered = confirmed.registered
    register(
        database,
        registered.experiment,
        registered.identity,
        training_images=150,
    )
    with pytest.raises(UsageError, match="has no complete trial yet"):
        write_report(database, registered, tmp_path)


def test_report_escapes_odd_and_long_labels_and_shows_labels_without_trials(database: Database, tmp_path: Path) -> None:
    odd = "<img src=x onerror=alert(1)> | *[y](z)* and so on until no figure has room for all of it, however small"
    table = tomllib.loads(EXPERIMENT.format(index=tmp_path / "i.csv", images=tmp_path)) | {"labels": [odd, "Hernia"]}
    registered = register(
        database,
        resolve_paths(parse(table, source="test"), tmp_path),
        unfiltered(index="0" * 64, split="0" * 64),
        training_images=150,
    )
    fill_search(database, registered, odd, seed=0)
    write_report(database, registered, tmp_path / "out")
    page, markdown = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    for written in (page, markdown):
        assert "<img" not in written
        assert "&lt;img src=x" in written
        assert re.search(r"Hernia(</b>|:)\s*(<small>)?no complete trial yet", written)
    assert "*[y](z)*" not in markdown.partition("## Methods")[0]
    row = next(row for row in markdown.splitlines() if row.startswith("| &lt;img"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5, "a label and three resolutions"


def test_unknown_experiment_is_refused_with_the_known_names(confirmed, tmp_path: Path) -> None:
    done = CliRunner().invoke(acuity, ["report", "tony", "--out", str(tmp_path / "r"), "--storage", confirmed.url])
    assert done.exit_code == 1
    assert str(done.exception) == 'no experiment named "tony". There are: tiny'
    assert not (tmp_path / "r").exists()


def test_label_with_markup_or_mathematics_is_drawn_as_text() -> None:
    at = ResolutionAnswer(32, 0.7, 0.6, 0.8, "validation", 3, 0, 0)
    entry = LabelAnswer('<script>alert("x")</script> $\\alpha$', None, None, None, (at,), {}, None, ())
    with figure_style():
        svg = inline_svg(auc_panel(entry, limits=(0.5, 1.0)), auc_alt(entry))
    assert "<script" not in svg
    assert "$\\alpha$" in svg
    ElementTree.fromstring(svg)


def test_summary_counts_the_trials_of_the_database(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        summary = summarise_search(database, confirmed.registered, "Nodule")
        with database.engine.connect() as connection:
            query = text(
                "select count(*) filter (where state = 'COMPLETE'), count(*) filter (where state = 'PRUNED'), "
                "sum(seconds), max(value) from acuity.all_trials "
                "where not confirm and label = 'Nodule' and state in ('COMPLETE', 'PRUNED')"
            )
            complete, pruned, seconds, best = connection.execute(query).one()
    assert (summary.complete, summary.trials) == (complete, complete + pruned)
    assert (summary.epochs_run, summary.epochs_saved) == (2 * complete + pruned, pruned)
    assert summary.training_s == pytest.approx(seconds)
    assert summary.front["auc"].iloc[-1] == best
    assert (summary.front["auc"].diff().dropna() > 0).all()
    assert summary.importance is None or sum(summary.importance.values()) == pytest.approx(1)


def test_report_command_prints_the_path_of_the_page(confirmed, tmp_path: Path) -> None:
    done = CliRunner().invoke(acuity, ["report", "tiny", "--out", str(tmp_path / "r"), "--storage", confirmed.url])
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output
    assert (tmp_path / "r" / "report.html").stat().st_size < 2_000_000
