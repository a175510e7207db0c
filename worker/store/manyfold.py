"""One update for many rows, each with values of its own, as is cheapest on each database.

PostgreSQL is given the rows as one JSON text: a statement bound, sent and answered for each row
costs this process more than all else about it. SQLite, in this process, takes them one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import JSON, ColumnElement, Connection, Text, Update, bindparam, cast, column, func
from sqlalchemy.types import TypeEngine

Given = Callable[[str], ColumnElement[Any]]
"""Gives what a row has of that name."""


class ManyfoldUpdate:
    """An update that `make` builds from what the rows have, which are these names and types."""

    def __init__(
        self, make: Callable[[Given], Update], types: Mapping[str, TypeEngine[Any]]
    ) -> None:
        self._row_by_row = make(lambda name: bindparam(name, type_=types[name]))
        rows = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
        columns = [column(name, kind) for name, kind in types.items()]
        given = rows.table_valued(*columns).render_derived(name="given", with_types=True)
        self._at_once = make(lambda name: given.c[name])

    def execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Update by these rows. Raises as any statement does."""
        if connection.dialect.name == "postgresql":
            connection.execute(self._at_once, {"rows": msgspec.json.encode(rows).decode()})
        else:
            connection.execute(self._row_by_row, list(rows))
