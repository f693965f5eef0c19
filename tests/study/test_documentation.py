"""The documentation names only files that exist, and its reference is the program's."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"\b(?:tests|benchmarks|study|objectives|storage)/[\w/]+\.(?:py|json|md)\b")
LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = [ROOT / name for name in NAMED.findall(text)] + [page.parent / link for link in LINKED.findall(text)]
    assert [str(path) for path in paths if not path.exists()] == []


def test_the_pages_name_files() -> None:
    named = {name for page in PAGES for name in NAMED.findall(page.read_text(encoding="utf-8"))}
    assert {"study/launch.py", "tests/system/test_faults.py"} <= named


def test_the_reference_pages_are_those_of_this_program() -> None:
    pages = runpy.run_path(str(ROOT / "website" / "reference.py"))["PAGES"]
    stale = [
        name
        for name, page in pages.items()
        if (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") != page()
    ]
    assert stale == [], "run `python website/reference.py`"
