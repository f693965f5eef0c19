"""A borderless table, the form of every table of `acuity`."""

from collections.abc import Collection

from rich.table import Table


def plain_table(*headings: str, text: Collection[str] = (), title: str | None = None) -> Table:
    """An empty table. The first column and the columns in `text` are left-aligned, all others right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position == 0 or heading in text else "right")
    return table
