"""Style of figures: one font size, sized for a journal column, readable with colour blindness and in grey print."""

import io
import itertools
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from acuity.study.colours import GREY, SERIES

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a label may hold a dollar sign
    "svg.fonttype": "none",  # text stays text, which screen readers and searches need
    "svg.hashsalt": "acuity",  # the same figure gives the same file
    "pdf.fonttype": 42,  # as journals ask
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style to everything that is drawn and saved in this block.

    Settings of the program have no effect: Optuna's Matplotlib plots leave theirs behind.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


class ReportFigure(Figure):
    """A figure that a notebook shows as a picture, also where pyplot is not loaded."""

    def _repr_png_(self) -> tuple[bytes, dict[str, float]]:
        """The PNG at twice the resolution of a screen, and its size in CSS pixels."""
        buffer = io.BytesIO()
        with figure_style():
            self.savefig(buffer, format="png", dpi=192, metadata={"Software": None})
        width, height = 96 * self.get_size_inches()
        return buffer.getvalue(), {"width": float(width), "height": float(height)}


def series(position: int) -> tuple[str, str, object]:
    """Colour, marker and line style of the series at a position."""
    return SERIES[position % len(SERIES)]


def in_lines(name: str, width: int) -> str:
    """Wrap a label into at most two lines of width characters; cut off the rest."""
    return "\n".join(textwrap.wrap(name, width, max_lines=2, placeholder="…"))


_numbers = itertools.count()
_NAMED = re.compile(r'\b(id="|xlink:href="#|href="#|url\(#)([^")]+)')


def inline_svg(figure: Figure, alt: str) -> str:
    """The figure as SVG for a page: fills its container, described by alt, with ids that no other figure has."""
    text = _svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = f"f{next(_numbers)}-"
    text = _NAMED.sub(lambda found: f"{found[1]}{prefix}{found[2]}", text)
    text = text.replace("'DejaVu Sans'", "Helvetica, Arial, 'DejaVu Sans', sans-serif")
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    opening = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box[1]}" preserveAspectRatio="xMidYMid meet"'
    opening += ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"^<svg[^>]*>", lambda _: opening + f"<title>{escape(alt)}</title>", text, count=1)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
