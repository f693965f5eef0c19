"""An output of a Jupyter notebook that redraws itself. Rich redraws a table only on a terminal."""

import io
import time

from rich.console import Console, RenderableType

_REDRAW_S = 0.5
_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace">{code}</pre>'


class NotebookOutput:
    """One output of the running cell. Each call of `update` replaces its content.

    Make it in a notebook only, where `Console.is_jupyter` is true.
    """

    def __init__(self, *, width: int) -> None:
        from IPython.display import display  # a notebook's kernel has IPython; Acuity does not depend on it

        self._width, self._drawn = width, float("-inf")
        self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def update(self, renderable: RenderableType, *, refresh: bool = True) -> None:
        """Show the renderable in place of the earlier one. refresh: also within half a second of the last one."""
        if not refresh and time.monotonic() - self._drawn < _REDRAW_S:
            return
        self._drawn = time.monotonic()
        console = Console(
            file=io.StringIO(), record=True, width=self._width, markup=False, emoji=False, force_jupyter=False
        )
        console.print(renderable)
        text = console.export_text(clear=False)
        html = console.export_html(inline_styles=True, code_format=_PRE)
        self._output.update({"text/plain": text, "text/html": html}, raw=True)

    def clear(self) -> None:
        """Show nothing."""
        self._output.update({"text/plain": ""}, raw=True)
