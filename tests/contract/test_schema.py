from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Table, insert, inspect, select, text, update

from tests.contract.acts import (
    all_at_once,
    batch_of,
    claim,
    enlist,
    job_ids,
    submit_batch,
    submit_single,
)
from worker.errors import DatabaseError, SchemaError
from worker.jobs.states import State
from worker.models import attempt, batch, job, metadata, worker
from worker.store import schema
from worker.store.engine import ConflictError, Database, RefusedError


def _migrate(url: str) -> tuple[str | None, str]:
    with Database(url) as database:
        return schema.migrate(database)


def test_six_threads_that_migrate_at_once_all_succeed_and_one_does_the_work(
    empty_url: str,
) -> None:
    found = all_at_once(*[lambda: _migrate(empty_url)] * 6)
    head = found[0][1]
    assert sorted(before or "" for before, _ in found) == ["", *[head] * 5]


def test_six_processes_that_migrate_at_once_all_succeed(empty_url: str) -> None:
    with get_context("spawn").Pool(6) as pool:
        found = pool.map(_migrate, [empty_url] * 6, chunksize=1)
    assert len({after for _, after in found}) == 1
    assert [before for before, _ in found].count(None) == 1


def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_migrations_make_exactly_the_checks_of_the_models(database: Database) -> None:
    with database.read() as connection:
        inspector = inspect(connection)
        for table in metadata.sorted_tables:
            made = {check["name"] for check in inspector.get_check_constraints(table.name)}
            assert made == _check_names(table), table.name


def _check_names(table: Table) -> set[str | None]:
    prefix = f"ck_{table.name}_"
    return {
        f"{prefix}{one.name}".replace(prefix * 2, prefix)
        for one in table.constraints
        if isinstance(one, CheckConstraint)
    }


def test_a_database_that_was_never_migrated_is_told_so(empty_url: str) -> None:
    with Database(empty_url) as database:
        with pytest.raises(SchemaError, match=r"schema none.*chatqueue migrate"):
            schema.verify(database)
        schema.migrate(database)
        schema.verify(database)


def test_a_database_of_another_version_is_told_so(empty_url: str) -> None:
    with Database(empty_url) as database:
        schema.migrate(database)
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))
        with pytest.raises(SchemaError, match="schema older"):
            schema.verify(database)


def test_the_schema_goes_down_and_up_again(empty_url: str) -> None:
    with Database(empty_url) as database:
        schema.migrate(database)
        config = schema._config()
        with database.write() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
        with database.read() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
        assert schema.migrate(database)[0] is None
        schema.verify(database)
        submit_batch(database, 1)


def test_leases_of_an_older_version_are_rewritten_so_that_they_can_be_found_lapsed(
    tmp_path: Path,
) -> None:
    """SQLite's own clock wrote milliseconds, which never equal the driver's microseconds."""
    with Database(f"sqlite:///{tmp_path / 'chatqueue.db'}") as database:
        config = schema._config()
        with database.rebuild() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0003")
            connection.execute(
                text(
                    "INSERT INTO worker (id, name, host, pid, started_at, lease_until) VALUES"
                    " ('w', 'w@h', 'h', 1, '2026-11-25 07:00:00.000', '2026-11-25 07:00:01.500')"
                )
            )
        schema.migrate(database)
        with database.read() as connection:
            stored = connection.execute(text("SELECT lease_until FROM worker")).scalar_one()
            found = connection.execute(select(worker.c.lease_until)).scalar_one()
            same = select(worker.c.id).where(worker.c.lease_until == found)
            assert stored == "2026-11-25 07:00:01.500000"
            assert connection.scalar(same) == "w"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "sqlite:////proc/nowhere/chatqueue.db",
    ],
)
def test_a_database_that_cannot_be_reached_is_a_database_error(url: str) -> None:
    with pytest.raises(DatabaseError), Database(url) as database:
        schema.verify(database)


def test_a_file_that_is_no_database_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "chatqueue.db"
    path.write_bytes(b"this is a text, not a database" * 100)
    with (
        Database(f"sqlite:///{path}") as database,
        pytest.raises(DatabaseError, match="not a data"),
    ):
        schema.verify(database)


# --- what no code path can write ------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"state": "sleeping"},
        {"state": State.RUNNING},
        {"worker_id": "worker_x"},
        {"state": State.WAITING},
        {"state": State.SUCCEEDED},
        {"state": State.QUEUED, "finished_at": "now"},
        {"batch_id": "batch_none"},
        {"custom_id": "line-2"},
        {"body": None},
    ],
    ids=lambda values: ", ".join(f"{name}={value}" for name, value in values.items()),
)
def test_an_impossible_job_is_refused(database: Database, values: dict[str, Any]) -> None:
    first, _ = job_ids(database, submit_batch(database, 2))
    if "finished_at" in values:
        values = {**values, "finished_at": select(batch.c.created_at).scalar_subquery()}
    with pytest.raises(ConflictError), database.write() as connection:
        connection.execute(update(job).where(job.c.id == first).values(values))


@pytest.mark.parametrize(
    "values", [{"state": "paused"}, {"succeeded": 2, "failed": 1}, {"input_file_id": "file_none"}]
)
def test_an_impossible_batch_is_refused(database: Database, values: dict[str, Any]) -> None:
    submit_batch(database, 2)
    with pytest.raises(ConflictError), database.write() as connection:
        connection.execute(update(batch).values(values))


def test_a_call_is_in_the_ledger_once_and_in_a_known_state(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    worker_id = enlist(database)
    (claimed,) = claim(database, worker_id, **{batch_id: 1})
    with pytest.raises(ConflictError), database.write() as connection:
        connection.execute(update(attempt).values(state="lost"))
    with database.read() as connection:
        row = dict(connection.execute(select(attempt)).one()._mapping)
    with pytest.raises(ConflictError), database.write() as connection:
        connection.execute(insert(attempt).values(**row))
    assert row["job_id"] == claimed.id


def test_a_time_without_a_zone_is_not_stored(database: Database) -> None:
    job_id = submit_single(database)
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # that is the point
    with pytest.raises(RefusedError), database.write() as connection:
        connection.execute(update(job).where(job.c.id == job_id).values(started_at=naive))


def test_a_write_that_fails_leaves_nothing_and_the_next_one_goes_through(
    database: Database,
) -> None:
    def fail() -> None:
        with database.write() as connection:
            connection.execute(update(batch).values(name="changed"))
            raise LookupError

    batch_id = submit_batch(database, 1)
    with pytest.raises(LookupError):
        fail()
    assert batch_of(database, batch_id).name == "requests.jsonl"
    assert len(job_ids(database, submit_batch(database, 1))) == 1


def test_a_read_of_sqlite_sees_one_state_however_long_it_takes(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'chatqueue.db'}") as database:
        schema.migrate(database)
        with database.read() as connection:
            before = connection.execute(select(batch.c.id)).all()
            submit_batch(database, 1)
            assert connection.execute(select(batch.c.id)).all() == before
