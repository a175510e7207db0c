"""A backlog of a million costs those who work on it no more than one of ten thousand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from tests.conftest import Server
from tests.contract.acts import claim, enlist, job_ids, lanes, outcome_of, put, submit_batch
from worker.execution.upkeep import Upkeep
from worker.models import job
from worker.settings import Settings
from worker.store import schema
from worker.store.claims import Claimed
from worker.store.engine import Database

SMALL, HUGE = 10_000, 1_000_000
AT_ONCE = 50


@pytest.fixture
def own(server: Server) -> Iterator[Database]:
    """A database of the test's own: a million rows are dropped faster than deleted."""
    with server.database() as url, Database(url) as database:
        schema.migrate(database)
        yield database


def grow(database: Database, first: str, begin: int, end: int) -> None:
    """Add copies of a batch's first job; nine in ten of the first half are done, a tenth waits."""
    pad, rows = (
        ("printf('%07d', i)", "n")
        if database.is_sqlite
        else ("lpad(i::text, 7, '0')", f"generate_series({begin}, {end - 1}) AS n(i)")
    )
    later = "datetime('now', '+1 day')" if database.is_sqlite else "now() + interval '1 day'"
    is_done = f"i % 10 <> 0 AND i < {begin + (end - begin) // 2}"
    values = {
        "id": f"substr(id, 1, 20) || {pad}",
        "custom_id": f"'c' || {pad}",
        "line": "i",
        "state": f"CASE WHEN i % 10 = 0 THEN 'waiting' WHEN {is_done} THEN 'succeeded' "
        "ELSE 'queued' END",
        "finished_at": f"CASE WHEN {is_done} THEN created_at END",
        "due_at": f"CASE WHEN i % 10 = 0 THEN {later} END",
    }
    columns = [column.name for column in job.columns]
    chosen = ", ".join(values.get(name, name) for name in columns)
    counting = f"SELECT {begin} UNION ALL SELECT i + 1 FROM n WHERE i < {end - 1}"  # noqa: S608  # as below
    counter = f"WITH RECURSIVE n(i) AS ({counting})" if database.is_sqlite else ""
    with database.write() as connection:
        connection.execute(
            text(
                f"INSERT INTO job ({', '.join(columns)}) {counter} "  # noqa: S608  # no input
                f"SELECT {chosen} FROM job, {rows} WHERE id = :first"
            ),
            {"first": first},
        )
        connection.execute(text("UPDATE batch SET total = :end"), {"end": end})
        connection.execute(text("ANALYZE"))


# --- what it costs --------------------------------------------------------------------------------


@contextmanager
def noted(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Note each statement that is run, with its parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        if statement.lstrip().startswith(("SELECT", "UPDATE", "INSERT", "WITH", "DELETE")):
            statements.append((statement, parameters[0] if many else parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def steps(database: Database, act: Callable[[], object]) -> int:
    """Count the steps that SQLite's machine makes for an act, by tens."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 10
        return 0

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, 10)

    event.listen(database.engine, "checkout", watch)
    try:
        act()
    finally:
        event.remove(database.engine, "checkout", watch)
        with database.read() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.set_progress_handler(None, 0)
    return count


def pages(database: Database, act: Callable[[], object]) -> int:
    """Count the pages that PostgreSQL looks at for the statements of an act, run once more."""
    with noted(database) as statements:
        act()
    total = 0
    with database.engine.connect() as connection:
        for statement, parameters in statements:
            plan = explained(connection, statement, parameters)
            total += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            forbid_scans(plan)
    return total


def explained(connection: Connection, statement: str, parameters: Any) -> Any:
    """Run a statement for its plan, and undo what it did."""
    raw = connection.connection.cursor()
    raw.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
    ((plans,),) = raw.fetchall()
    connection.rollback()
    return plans[0]["Plan"]


def forbid_scans(node: Any) -> None:
    """Of jobs there is no sequential scan, and what is sorted is a claim's worth."""
    assert (node["Node Type"], node.get("Relation Name")) != ("Seq Scan", "job"), node
    if "Sort" in node["Node Type"]:
        assert node["Actual Rows"] <= 10 * AT_ONCE, node
    for part in node.get("Plans", ()):
        forbid_scans(part)


def cost(database: Database, act: Callable[[], object]) -> int:
    """What an act costs the database, in a measure of its own that no other load can change."""
    return steps(database, act) if database.is_sqlite else pages(database, act)


# --- the acts -------------------------------------------------------------------------------------


def costs(database: Database, worker_id: str, batch_id: str) -> dict[str, int]:
    """What each thing that a worker does over and over costs now."""
    claimed: list[Claimed] = []

    def claims() -> None:
        claimed.extend(claim(database, worker_id, **{batch_id: AT_ONCE}))
        assert claimed

    upkeep = Upkeep(database, worker_id, Settings())
    upkeep.run([])  # the first looks for what a clock has stranded before it
    return {
        "look for work": cost(database, lambda: lanes(database)),
        "claim": cost(database, claims),
        "record": cost(database, lambda: put(database, *map(outcome_of, claimed))),
        "upkeep": cost(database, lambda: upkeep.run([])),
    }


def test_a_backlog_of_a_million_costs_no_more_than_one_of_ten_thousand(own: Database) -> None:
    batch_id = submit_batch(own, 1)
    worker_id = enlist(own)
    (first,) = job_ids(own, batch_id)
    grow(own, first, 2, SMALL)
    costs(own, worker_id, batch_id)  # statements are compiled, caches filled
    small = costs(own, worker_id, batch_id)
    grow(own, first, SMALL, HUGE)
    costs(own, worker_id, batch_id)
    huge = costs(own, worker_id, batch_id)
    assert all(small.values())
    too_dear = {name: (small[name], huge[name]) for name in small if huge[name] > 2 * small[name]}
    assert too_dear == {}
