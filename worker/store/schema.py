"""Bringing the database to the schema of this version, under a lock; workers only verify.

The migrations travel with the package: `migrations/` beside it in a checkout, inside it when
installed from a wheel.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from worker.errors import DatabaseError, SchemaError
from worker.store.engine import Database, RefusedError

_LOCK_NUMBER: Final = 7_215_260_051
"""The advisory lock on PostgreSQL under which one migration at a time runs."""


def migrate(database: Database) -> tuple[str | None, str]:
    """Migrate to the newest schema; return the revisions (before, after). Raises DatabaseError.

    Any number of processes may call it at once: one migrates, the others wait and find it done.
    """
    config = _config()
    try:
        with _locked(database) as connection:
            before = _revision(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            after = _revision(connection)
    except RefusedError as error:
        raise DatabaseError(f"the database could not be migrated: {error.__cause__}") from error
    return before, str(after)


def verify(database: Database) -> None:
    """Check that the schema is this version's. Raises SchemaError, DatabaseError."""
    with database.read() as connection:
        found = _revision(connection)
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found != wanted:
        raise SchemaError(
            f"the database is at schema {found or 'none'}, this version needs {wanted}: "
            "run 'chatqueue migrate'"
        )


def _config() -> Config:
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    config = Config()
    config.set_main_option(
        "script_location", str(inside if inside.is_dir() else package.parent / "migrations")
    )
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _locked(database: Database) -> Iterator[Connection]:
    if database.is_sqlite:
        with _file_lock(str(database.engine.url.database)), database.rebuild() as connection:
            yield connection
    else:
        with database.write() as connection:
            # Held to the end of the transaction, so a killed migration leaves no lock behind.
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER}
            )
            yield connection


@contextmanager
def _file_lock(path: str) -> Iterator[None]:
    with Path(f"{path}.migrate-lock").open("w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
