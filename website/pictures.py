"""Make the pictures of the documentation from a confirmed experiment: the overview, the report's figure, the terminal.

    acuity demo && acuity confirm demo
    python website/pictures.py demo

It needs Chromium. The storage is that of `acuity`: ACUITY_STORAGE, else the embedded server.
"""

import argparse
import io
import shutil
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from waitress import create_server

from acuity.storage.database import open_storage
from acuity.study.dashboard.overview import with_overview
from acuity.study.display.answer_table import answer_table
from acuity.study.registry.record import read_registered
from acuity.study.report.auc_figure import auc_figure
from acuity.study.report.style import figure_style
from acuity.study.results.answer import read_answer

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
_SIZES = {"overview": (1200, 560), "overview-phone": (390, 844)}
"""Picture of the overview -> width and height of the browser's window."""


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a confirmed experiment")
    name = parser.parse_args().name
    PICTURES.mkdir(exist_ok=True)
    with open_storage() as database:
        read_registered(database, name)  # StorageError where there is none of this name
        answer = read_answer(database, name)
        with figure_style():
            auc_figure(answer.labels).savefig(PICTURES / "auc.png", dpi=200, metadata={"Software": "acuity"})
        console = Console(record=True, width=118, file=io.StringIO())
        console.print(answer_table(answer))
        console.save_svg(str(PICTURES / "best.svg"), title=f"acuity best {name}")
        server = create_server(with_overview(lambda *_: [], database), host="127.0.0.1", port=0)
        threading.Thread(target=server.run, daemon=True).start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for picture, (width, height) in _SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(f"http://127.0.0.1:{server.effective_port}/?experiment={name}")
                page.screenshot(path=PICTURES / f"{picture}.png", full_page=True)
            browser.close()
        server.close()


if __name__ == "__main__":
    main()
