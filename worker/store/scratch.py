"""For `chatqueue prove`: a scratch database, trouble made in it, and evidence read from it.

Called by `worker.prove` only. On PostgreSQL everything is in a schema of its own; no other is ever
touched. Triggers write down each change of a job that has, or had, ended, and each call that is
lost: independent of all code that records.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.engine import make_url

from worker.errors import DatabaseError, SettingsError
from worker.jobs.states import TERMINAL, AttemptState, State
from worker.models import UtcDateTime, attempt, batch, job, metadata, worker
from worker.store.clock import later
from worker.store.engine import Database, RefusedError

_TRIES: Final = 5
"""So often is all time moved at the most, where that meets a deadlock with what workers write."""

# The order in which a worker's transactions come to them: else the two could wait for each other.
_FIRST: Final = (worker, job, attempt)


# --- where the scratch database is ----------------------------------------------------------------


def in_schema(url: str, schema: str) -> str:
    """Give the URL of a PostgreSQL with the tables of one schema."""
    parsed = make_url(url)
    given = parsed.query.get("options", "")
    options = f"{given if isinstance(given, str) else ' '.join(given)} -csearch_path={schema}"
    changed = parsed.update_query_dict({"options": options.strip()})
    return changed.render_as_string(hide_password=False)


def by_way_of(url: str, port: int) -> str:
    """Give the URL of the same PostgreSQL, reached through a port of this machine.

    The name of its host stays, so that its certificate still fits.
    """
    parsed = make_url(url)
    if parsed.host:
        parsed = parsed.update_query_dict({"hostaddr": "127.0.0.1"})
    else:
        parsed = parsed.difference_update_query(["host"]).set(host="127.0.0.1")
    return parsed.set(port=port).render_as_string(hide_password=False)


def address(url: str) -> tuple[str, int]:
    """Say where a PostgreSQL listens: its host, or the folder of its socket, and its port.

    Raises SettingsError where the URL names several hosts.
    """
    parsed = make_url(url)
    host = parsed.host or parsed.query.get("host", "localhost")
    if not isinstance(host, str) or "," in host:
        raise SettingsError(["the database's URL must name one host"])
    return host, parsed.port or 5432


def create_schema(url: str, schema: str) -> None:
    """Make an empty schema. Raises DatabaseError."""
    _execute(url, f'CREATE SCHEMA "{schema}"')


def drop_schema(url: str, schema: str) -> None:
    """Remove a schema with all that is in it. Raises DatabaseError."""
    _execute(url, f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


def _execute(url: str, statement: str) -> None:
    try:
        with Database(url) as database, database.write() as connection:
            connection.execute(text(statement))
    except RefusedError as error:
        raise DatabaseError(f"the database does not allow this: {statement}") from error


# --- the audit ------------------------------------------------------------------------------------

_OVER: Final = ", ".join(f"'{state}'" for state in sorted(TERMINAL))
# All but the times, which `move_time` changes.
_WATCHED: Final = ", ".join(
    column.name for column in job.columns if not isinstance(column.type, UtcDateTime)
)


@dataclass(frozen=True, slots=True)
class _Note:
    """What is written down: into which table and which columns, after which update, and when."""

    table: str
    columns: str
    values: str
    update: str
    when: str


_NOTES: Final = (
    _Note(
        "prove_change",
        "job_id, before, after",
        "NEW.id, OLD.state, NEW.state",
        f"UPDATE OF {_WATCHED} ON job",
        f"OLD.state IN ({_OVER}) OR NEW.state IN ({_OVER})",
    ),
    _Note(
        "prove_loss",
        "job_id, fence, worker_id, error_code",
        "NEW.job_id, NEW.fence, NEW.worker_id, NEW.error_code",
        "UPDATE OF state ON attempt",
        f"NEW.state = '{AttemptState.UNKNOWN}' AND OLD.state <> NEW.state",
    ),
)


def install_audit(database: Database) -> None:
    """Have the database itself write down what becomes of jobs and calls.

    Every change of a job that ends by it or had ended before, and every call whose outcome is
    unknown from then on.
    """
    with database.write() as connection:
        for note in _NOTES:
            for statement in _statements(note, is_sqlite=database.is_sqlite):
                connection.execute(text(statement))


def _statements(note: _Note, *, is_sqlite: bool) -> Iterator[str]:
    serial = "INTEGER" if is_sqlite else "BIGSERIAL"
    columns = ", ".join(f"{name.strip()} TEXT" for name in note.columns.split(","))
    yield f"CREATE TABLE {note.table} (number {serial} PRIMARY KEY, {columns})"
    write = f"INSERT INTO {note.table} ({note.columns}) VALUES ({note.values})"  # noqa: S608  # ours
    trigger = (
        f"CREATE TRIGGER {note.table}_noted AFTER {note.update} FOR EACH ROW WHEN ({note.when})"
    )
    if is_sqlite:
        yield f"{trigger} BEGIN {write}; END"
        return
    function = f"FUNCTION {note.table}_note()"
    body = f"$$ BEGIN {write}; RETURN NULL; END $$"
    yield f"CREATE {function} RETURNS trigger LANGUAGE plpgsql AS {body}"
    yield f"{trigger} EXECUTE {function}"


# --- trouble --------------------------------------------------------------------------------------


def hold_the_lock(database: Database, until: Callable[[], object]) -> None:
    """Keep everybody else from writing to a SQLite database until the function returns."""
    with database.write():
        until()


def move_time(database: Database, seconds: float) -> None:
    """Move all stored times: to the workers as if the database's clock had gone the other way.

    Raises DatabaseError.
    """
    for left in reversed(range(_TRIES)):
        try:
            with database.write() as connection:
                _move_time(connection, seconds)
        except DatabaseError:
            if not left:
                raise
        else:
            return


def _move_time(connection: Connection, seconds: float) -> None:
    tables = [*_FIRST, *(one for one in metadata.sorted_tables if one not in _FIRST)]
    for table in tables:
        if connection.dialect.name != "sqlite":
            connection.execute(text(f'LOCK TABLE "{table.name}" IN SHARE ROW EXCLUSIVE MODE'))
    for table in tables:
        times = [column for column in table.columns if isinstance(column.type, UtcDateTime)]
        if times:
            moved = {column.name: later(column, seconds) for column in times}
            connection.execute(update(table).values(moved))


# --- evidence -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job, as it stands."""

    id: str
    batch_id: str | None
    custom_id: str
    state: str
    request_id: str | None
    error_code: str | None


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch, and what it says of its jobs."""

    id: str
    state: str
    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """A line of the ledger. `total_tokens`: None where no usage was told."""

    job_id: str
    fence: int
    state: str
    worker_id: str
    status: int | None
    request_id: str | None
    error_code: str | None
    maybe_billed: bool
    total_tokens: int | None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process, as it wrote itself down."""

    id: str
    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Change:
    """What the trigger saw: a job that ended, or one that changed after its end."""

    job_id: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Loss:
    """What the trigger saw: a call whose outcome is unknown from then on, and why."""

    number: int
    job_id: str
    fence: int
    worker_id: str
    error_code: str | None


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that is written of the work, in one view."""

    jobs: tuple[JobRow, ...]
    batches: tuple[BatchRow, ...]
    attempts: tuple[AttemptRow, ...]
    workers: tuple[WorkerRow, ...]
    changes: tuple[Change, ...]


def read_books(database: Database) -> Books:
    """Read all of it. Raises DatabaseError."""
    with database.read() as connection:
        return Books(
            jobs=_rows(connection, JobRow, job),
            batches=_rows(connection, BatchRow, batch),
            attempts=_rows(connection, AttemptRow, attempt),
            workers=_rows(connection, WorkerRow, worker),
            changes=tuple(
                Change(*row)
                for row in connection.execute(
                    text("SELECT job_id, before, after FROM prove_change ORDER BY number")
                )
            ),
        )


def _rows(connection: Connection, kind: Any, table: Any) -> tuple[Any, ...]:
    columns = [table.c[name] for name in kind.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(*table.primary_key))
    return tuple(kind(*row) for row in rows)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is: jobs that ended, and how many each worker process (by pid) holds.

    `losses` are those since the look before.
    """

    done: int
    held: dict[int, int]
    losses: tuple[Loss, ...] = ()


def read_progress(database: Database, after: int) -> Progress:
    """Read how far the work is, with the losses of a higher number. Raises DatabaseError."""
    running = (
        select(worker.c.pid, func.count())
        .join_from(job, worker, worker.c.id == job.c.worker_id)
        .where(job.c.state == State.RUNNING)
        .group_by(worker.c.pid)
    )
    over = select(func.count()).select_from(job).where(job.c.state.in_(TERMINAL))
    with database.read() as connection:
        held = {row[0]: row[1] for row in connection.execute(running)}
        losses = connection.execute(
            text(
                "SELECT number, job_id, CAST(fence AS INTEGER), worker_id, error_code "
                "FROM prove_loss WHERE number > :after ORDER BY number"
            ),
            {"after": after},
        )
        return Progress(connection.scalar(over) or 0, held, tuple(Loss(*row) for row in losses))
