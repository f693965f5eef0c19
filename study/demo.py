"""`acuity demo`: run an experiment on phantoms, and print the best resolutions beside those that they need."""

from pathlib import Path

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
architectures = ["test_resnet", "test_efficientnet"]
trials = 12
min_complete_per_resolution = 2
learning_rate = [1e-3, 1e-2]

[training]
epochs = 5
"""

_IMAGES = 1200


def run_demo(folder: Path, *, storage_url: str | None, workers: int | None) -> None:
    """Write the phantoms and the experiment into the folder, run the experiment, and print the results.

    A second call continues the experiment in the folder.
    """
    console = messages_console()
    file = folder / "experiment.toml"
    if not file.exists():
        console.print(f"Drawing {_IMAGES} synthetic radiographs into {folder}/images")
        write_phantoms(folder, images=_IMAGES)
        labels = ", ".join(f'"{label}"' for label in TRUTH)
        file.write_text(_EXPERIMENT.format(file=file, labels=labels), encoding="utf-8")
    console.print(f"The experiment is {file}")
    experiment = load(file)
    with open_storage(storage_url) as database:
        launch(database, experiment, FleetOptions(workers=workers), console=console)
        answer = read_answer(database, experiment.name)
    results = results_console()
    results.print(answer_table(answer))
    results.print()
    results.print(_truth_table(answer))
    console.print(
        "\nNext:\n"
        "  acuity dashboard                  look at every trial in optuna-dashboard\n"
        "  acuity best demo --format json    the answer for a script\n"
        "  acuity confirm demo               judge the best on held-out patients\n"
        "  acuity new nih.toml               an experiment on your own radiographs",
        highlight=False,
    )


def _truth_table(answer: Answer) -> Table:
    """The search's best resolution beside the one that the phantoms need."""
    headings = ("label", "search's best", "what the phantoms need")
    table = plain_table(*headings, text=headings)
    for entry in answer.labels:
        found = "-" if entry.best is None else f"{entry.best.resolution} px"
        table.add_row(entry.label, found, TRUTH[entry.label].description)
    return table
