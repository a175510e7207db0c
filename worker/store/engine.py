"""The connection to SQL: one `Database` per process, and how each engine is made to behave.

The composition roots (`worker.execution.runtime`, `worker.client`) make one and hand it to the
functions of this room. It never decides anything about jobs.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from worker.errors import DatabaseError

BUSY_TIMEOUT_MS: Final = 30_000
"""How long a SQLite writer waits for another process's transaction."""

_READ_ONLY: Final = "chatqueue_read_only"
_UNCHECKED: Final = "chatqueue_unchecked"


class RefusedError(SQLAlchemyError):
    """The database is well and said no: a fault of ours, or contents it cannot hold.

    Its words name the kind of error only; those of its `__cause__` may quote the contents.
    """


class ConflictError(RefusedError):
    """A constraint said no: a row that must be the only one of its kind, or one that cannot be."""


Transaction = Connection
"""What the block of a `write()` or a `read()` is given."""


class Database:
    """An engine whose transactions are opened by intention: `write()` or `read()`.

    On SQLite a write takes the write lock at its start (an upgrade in the middle would fail at
    once under load), and the threads of a process queue for it here instead of polling the file.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._turn = threading.Lock() if self.is_sqlite else nullcontext()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits at the end of the block.

        Raises DatabaseError where the database is away or busy, RefusedError where it says no.
        """
        with self._turn, _translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def rebuild(self) -> Iterator[Connection]:
        """A write in which tables may be made anew. Raises as `write()` does.

        SQLite would take the rows of other tables along with a table that is dropped; so there
        foreign keys are looked after at the end.
        """
        if not self.is_sqlite:
            with self.write() as connection:
                yield connection
            return
        with self._turn, _translated(), self.engine.connect() as opened:
            connection = opened.execution_options(**{_UNCHECKED: True})
            try:
                with connection.begin():
                    yield connection
                    _check_foreign_keys(connection)
            finally:
                connection.invalidate()  # no other transaction may go without these checks

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: on SQLite one view, on PostgreSQL one per statement.

        Raises DatabaseError, RefusedError.
        """
        with _translated(), self.engine.connect() as connection:
            yield connection.execution_options(**{_READ_ONLY: True})

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@contextmanager
def _translated() -> Iterator[None]:
    """Tell apart what passes or a user can mend, and what will be refused each time it is tried.

    Drivers raise errors of Python's own for a text or a number that they cannot even send.
    """
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(type(error.orig).__name__) from error
    except (OperationalError, InternalError) as error:
        # Among these: a deadlock, a full disk, a server that shuts down or became read-only.
        raise DatabaseError(f"the database cannot be used: {error.orig}") from error
    except DBAPIError as error:
        # The bare class is what SQLite raises for a file that is no database, or a broken one.
        if error.connection_invalidated or type(error.orig) is sqlite3.DatabaseError:
            raise DatabaseError(f"the database cannot be used: {error.orig}") from error
        raise RefusedError(type(error.orig).__name__) from error
    except PoolTimeoutError as error:
        raise DatabaseError("the database cannot be used: no connection came free") from error
    except (StatementError, UnicodeError, OverflowError) as error:
        raise RefusedError(type(error).__name__) from error


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(url, parsed.database)
        return _postgresql(url)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise DatabaseError(
            "the PostgreSQL driver is not installed: pip install 'chatqueue[postgres]'"
        ) from error


def _postgresql(url: str) -> Engine:
    given = make_url(url).query.get("options", "")
    options = f"{given if isinstance(given, str) else ' '.join(given)} -c timezone=UTC".strip()
    # A worker holds three connections at most: one to claim, one to record, one to sweep.
    return create_engine(
        url,
        hide_parameters=True,
        pool_size=4,
        max_overflow=8,
        pool_pre_ping=True,
        connect_args={"options": options, "connect_timeout": 10},
    )


def _sqlite(url: str, path: str | None) -> Engine:
    if path and path != ":memory:":
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"the database's folder cannot be made: {error}") from error
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would otherwise open its own, late-locking transactions.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a claim and an answer that were committed survive a power cut too.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-32768"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_UNCHECKED, False):
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN" if options.get(_READ_ONLY, False) else "BEGIN IMMEDIATE")


def _check_foreign_keys(connection: Connection) -> None:
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(1)
    if orphans:
        raise DatabaseError(f"the database is not whole: a row of {orphans[0][0]} refers to none")
