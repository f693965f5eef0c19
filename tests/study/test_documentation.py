"""The documentation names only files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMED = re.compile(r"\b(?:tests|benchmarks|study|objectives|storage)/[\w/]+\.(?:py|json|md)\b")
LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = [ROOT / name for name in NAMED.findall(text)] + [page.parent / link for link in LINKED.findall(text)]
    assert [str(path) for path in paths if not path.exists()] == []


def test_the_pages_name_files() -> None:
    named = {name for page in PAGES for name in NAMED.findall(page.read_text(encoding="utf-8"))}
    assert {"study/launch.py", "tests/system/test_faults.py"} <= named
