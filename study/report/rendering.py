"""Render the report and the model card from the Jinja templates in this folder."""

from collections.abc import Callable
from typing import Any

import jinja2

from acuity.study.units import escape_markdown, signed


def render(template: str, *, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Render a template. Values in .html.jinja are escaped for HTML. A missing value raises UndefinedError."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("acuity.study.report"),
        autoescape=jinja2.select_autoescape(("html.jinja",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escape_markdown": escape_markdown, "signed": signed} | (filters or {})
    return environment.get_template(template).render(**values)
