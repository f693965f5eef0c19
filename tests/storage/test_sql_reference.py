"""docs/reference/sql.md describes the views as they are."""

import re
from pathlib import Path

from sqlalchemy import text

from acuity.storage.database import Database

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sql.md"


def test_the_page_has_each_column_of_the_views_with_its_type(database: Database) -> None:
    with database.engine.connect() as connection:
        rows = connection.execute(
            text(
                "select c.table_name, c.column_name, c.data_type from information_schema.columns c "
                "join information_schema.views v using (table_schema, table_name) "
                "where table_schema = 'acuity' order by table_name, ordinal_position"
            )
        )
        views: dict[str, list[tuple[str, str]]] = {}
        for table, column, kind in rows:
            views.setdefault(table, []).append((column, kind))
    described = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## acuity.")[1:]:
        name = section.split("\n", 1)[0]
        described[name] = re.findall(r"^\| `(\w+)` \| ([\w ]+?) \|", section, flags=re.MULTILINE)
    assert described == views
