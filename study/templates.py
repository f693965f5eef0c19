"""Pages and cards from the templates beside this module."""

import re
from collections.abc import Callable
from typing import Any

import jinja2


def render(template: str, *, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fill in a template; what goes into .html.jinja is escaped, and a value that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("study", "."),
        autoescape=jinja2.select_autoescape(("html.jinja",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": plain} | (filters or {})
    return environment.get_template(template).render(**values)


def plain(text: object) -> str:
    """A name within Markdown, where it is neither HTML, nor the end of a table's cell, nor a link, code or stress."""
    return re.sub(r"([\\|\[\]`*])", r"\\\1", str(text)).replace("<", "&lt;")
