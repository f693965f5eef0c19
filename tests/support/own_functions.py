"""Functions of a user's package, the code of docs/extending.md, and tiny experiments that name them."""

import re
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acuity.storage.database import Database
from acuity.study.config.loading import parse
from acuity.study.config.paths import resolve_paths
from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import open_image_set, training_images
from acuity.study.registry.claims import claim_trial
from acuity.study.registry.register import register
from acuity.study.worker.attempt import run_attempt
from acuity.study.worker.context import WorkerContext
from support.confirmed_experiment import EXPERIMENT, make_context

_PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
_BLOCK = re.compile(r"```python\n# mypackage/(\w+\.py)\n(.*?)```", re.DOTALL)

Write = Callable[[str, str], None]


@contextmanager
def own_package(root: Path) -> Iterator[Write]:
    """Write mypackage of docs/extending.md in root; yields a function that writes a module of it.

    The package is forgotten at the end.
    """
    (root / "mypackage").mkdir(parents=True)
    (root / "mypackage" / "__init__.py").touch()
    sys.path.insert(0, str(root))

    def write_module(name: str, source: str) -> None:
        (root / "mypackage" / name).write_text(source, encoding="utf-8")
        sys.modules.pop(f"mypackage.{name.removesuffix('.py')}", None)  # the next import reads the new source

    try:
        for page_name, source in page_modules().items():
            write_module(page_name, source)
        yield write_module
    finally:
        sys.path.remove(str(root))
        for module in [each for each in sys.modules if each.split(".")[0] == "mypackage"]:
            del sys.modules[module]


def page_modules() -> dict[str, str]:
    """The modules of docs/extending.md by file name."""
    modules = dict(_BLOCK.findall(_PAGE.read_text(encoding="utf-8")))
    assert list(modules) == ["networks.py", "chest.py", "steps.py", "training.py", "lightning_training.py"]
    return modules


def own_experiment(
    phantoms: Path,
    folder: Path,
    *,
    architecture: str = "test_resnet",
    training: str = "",
    search: str = "",
    rest: str = "",
) -> Experiment:
    """A tiny experiment with one architecture. training, search: more lines of these sections. rest: more sections."""
    toml = EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images")
    toml = toml.replace('["test_resnet", "test_efficientnet"]', f'["{architecture}"]')
    toml = toml.replace("[training]", f"{search}\n[training]\n{training}")
    return resolve_paths(parse(tomllib.loads(toml + rest), source="test"), folder)


def registered_context(database: Database, experiment: Experiment) -> WorkerContext:
    """Register the experiment; returns the context of a worker in this process."""
    image_set = open_image_set(experiment)
    images = training_images(image_set, experiment.labels)
    registered = register(database, experiment, image_set.identity, training_images=images)
    return make_context(database, registered, stop=threading.Event())


def run_one(context: WorkerContext) -> Any:
    """Claim a trial and run one attempt at it; returns the trial in the storage."""
    claim = claim_trial(context.database, context.registered, context.studies, can_hold=lambda *_: True)
    assert claim is not None
    run_attempt(context, claim)
    return context.database.storage.get_trial(claim.trial_id)
