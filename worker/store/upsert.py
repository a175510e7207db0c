"""`INSERT … ON CONFLICT` on both databases: SQLAlchemy has it in each dialect's own words."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those of the rows whose primary key is not there yet."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), list(rows))


def insert_or_touch(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    touch: Mapping[str, ColumnElement[Any]],
) -> None:
    """Insert rows with these columns; where a primary key is there already, write only these."""
    if rows:
        connection.execute(
            _insert(connection, table)
            .values(**touch)
            .on_conflict_do_update(index_elements=list(table.primary_key), set_=dict(touch)),
            list(rows),
        )


def insert_or_update(
    connection: Connection,
    table: Table,
    row: Mapping[str, Any],
    changes: Mapping[str, ColumnElement[Any] | Any],
) -> None:
    """Insert a row; where its primary key is there already, make these changes instead."""
    connection.execute(
        _insert(connection, table)
        .values(**row)
        .on_conflict_do_update(index_elements=list(table.primary_key), set_=dict(changes))
    )


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
