"""Functions of a user's package, the code of docs/extending.md, and tiny experiments that name them."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from acuity.study.config.schema import Experiment
from support.one_trial import tiny_experiment

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


def own_experiment(phantoms: Path, folder: Path, *, architecture: str = "test_resnet", **lines: str) -> Experiment:
    """A tiny experiment with one architecture. lines: those of `tiny_experiment`."""
    return tiny_experiment(phantoms, folder, architecture=architecture, **lines)
