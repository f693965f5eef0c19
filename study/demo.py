"""`acuity demo`: run an experiment on phantoms, and print the best resolutions beside those that they need."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from acuity.objectives.phantoms.generator import write_phantoms
from acuity.objectives.phantoms.truth import TRUTH
from acuity.storage.database import open_storage
from acuity.study.config.loading import load
from acuity.study.display.answer_table import answer_table
from acuity.study.display.console import messages_console, results_console
from acuity.study.display.plain_table import plain_table
from acuity.study.fleet.placement import FleetOptions
from acuity.study.launch import launch
from acuity.study.report.report import write_report
from acuity.study.results.answer import Answer, read_answer

_EXPERIMENT = """\
# The demo's experiment: synthetic radiographs with findings of known size.   acuity launch {file}
name = "demo"
labels = [{labels}]

[data]
index = "Data_Entry.csv"
images = "images"
split = "Data_Entry.split.csv"
cache = "cache"

[search]
resolutions = [32, 64, 128]
architectures = ["test_resnet", "test_resnet?stem_width=8"]
trials = 9
min_complete_per_resolution = 2
learning_rate = [5e-3, 2e-2]

[training]
epochs = 3
augment = false    # rotation and zoom would blur the mesh of Fibrosis, whose lines are 2 to 3 px apart at 128 px
"""

_IMAGES = 1200


def run_demo(folder: Path, *, storage_url: str | None, workers: int | None) -> None:
    """Write the phantoms and the experiment into the folder, run the experiment, print the results, write a report.

    A second call continues the experiment in the folder.
    """
    console = messages_console()
    file = folder / "experiment.toml"
    with ThreadPoolExecutor(max_workers=1) as thread:
        written = thread.submit(_write_experiment, file, console)  # while the embedded server starts
        with open_storage(storage_url) as database:
            written.result()
            console.print(f"The experiment is {file}")
            registered = launch(database, load(file), FleetOptions(workers=workers), console=console)
            answer = read_answer(database, registered.experiment.name)
            write_report(database, registered, folder / "report")
    results = results_console()
    results.print(answer_table(answer))
    results.print()
    results.print(_truth_table(answer))
    console.print(
        "Among resolutions that suffice, chance decides which one has the best AUC.\n"
        "\n"
        "Next:\n"
        "  acuity dashboard                  look at every trial in optuna-dashboard\n"
        "  acuity best demo --format json    the answer for a script\n"
        "  acuity confirm demo               retrain the best configurations, score test patients\n"
        "  acuity new nih.toml               an experiment on your own radiographs\n"
        "\n"
        f"Report: {folder}/report/report.html\n"
        f"Figure: {folder}/report/figures/auc-by-resolution.svg",
        highlight=False,
    )


def _write_experiment(file: Path, console: Console) -> None:
    """Draw the phantoms beside the file, then write the file. Nothing is done where the file exists."""
    if file.exists():
        return
    console.print(f"Drawing {_IMAGES:,} synthetic radiographs into {file.parent}/images")
    write_phantoms(file.parent, images=_IMAGES)
    labels = ", ".join(f'"{label}"' for label in TRUTH)
    file.write_text(_EXPERIMENT.format(file=file, labels=labels), encoding="utf-8")


def _truth_table(answer: Answer) -> Table:
    """The search's best resolution beside the one that the phantoms need."""
    headings = ("label", "search's best", "what the phantoms need")
    table = plain_table(*headings, text=headings)
    for entry in answer.labels:
        found = "-" if entry.best is None else f"{entry.best.resolution} px"
        table.add_row(entry.label, found, TRUTH[entry.label].description)
    return table
