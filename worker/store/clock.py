"""The database's own clock in SQL expressions.

Leases and due times are set and compared by one clock, the database's, so that workers whose
clocks differ or jump agree.
"""

from typing import Any

from sqlalchemy import ColumnElement, Float, Text, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from worker.models import UtcDateTime


class from_now(FunctionElement[Any]):  # noqa: N801  # reads as the SQL function it is
    """The database's time, plus a number of seconds."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | ColumnElement[float] = 0.0) -> None:
        if isinstance(seconds, int | float):
            seconds = bindparam(None, float(seconds), Float)
        super().__init__(seconds)


class later(FunctionElement[Any]):  # noqa: N801  # as above
    """A time of the database's, plus a number of seconds."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, moment: ColumnElement[Any], seconds: float) -> None:
        super().__init__(moment, bindparam(None, float(seconds), Float))


class utc_day(FunctionElement[str]):  # noqa: N801  # as above
    """The day in UTC of a time of the database's, as `YYYY-MM-DD`."""

    type = Text()
    inherit_cache = True


@compiles(utc_day, "postgresql")
def _utc_day_postgresql(element: utc_day, compiler: SQLCompiler, **kwargs: Any) -> str:
    return (
        f"to_char({compiler.process(element.clauses, **kwargs)} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    )


@compiles(utc_day, "sqlite")
def _utc_day_sqlite(element: utc_day, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"strftime('%Y-%m-%d', {compiler.process(element.clauses, **kwargs)})"


@compiles(later, "postgresql")
def _later_postgresql(element: later, compiler: SQLCompiler, **kwargs: Any) -> str:
    moment, seconds = (compiler.process(one, **kwargs) for one in element.clauses)
    return f"({moment} + {seconds} * interval '1 second')"


@compiles(later, "sqlite")
def _later_sqlite(element: later, compiler: SQLCompiler, **kwargs: Any) -> str:
    moment, seconds = (compiler.process(one, **kwargs) for one in element.clauses)
    return f"strftime('%Y-%m-%d %H:%M:%f000', {moment}, ({seconds}) || ' seconds')"


@compiles(from_now, "postgresql")
def _postgresql(element: from_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    seconds = compiler.process(element.clauses, **kwargs)
    return f"(clock_timestamp() + {seconds} * interval '1 second')"


@compiles(from_now, "sqlite")
def _sqlite(element: from_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    # The form in which the driver stores times, so that text compares as time and equal as equal.
    seconds = compiler.process(element.clauses, **kwargs)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ({seconds}) || ' seconds')"
