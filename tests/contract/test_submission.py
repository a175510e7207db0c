import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import select, update

from tests.conftest import wait_until
from tests.contract.acts import (
    all_at_once,
    batch_of,
    claim,
    count,
    enlist,
    fill_batch,
    job_ids,
    lanes,
    new_job,
    raw_job,
    submit_batch,
    submit_single,
)
from worker.batches import CHUNK, MAX_LINE_BYTES, Submitted, read_lines, submit_lines
from worker.errors import DatabaseError, InvalidRequestsError, NotFoundError
from worker.jobs.states import BatchState, State
from worker.models import batch, file, job
from worker.store import queries, schema, submission
from worker.store.engine import ConflictError, Database
from worker.store.submission import NewBatch

NEW = NewBatch("requests.jsonl", "bulk")
BODY = '{"model": "gpt-5.1", "messages": [{"role": "user", "content": "é 漢 🙂"}]}'


def line(custom_id: object, body: str = BODY) -> bytes:
    head = f'{{"custom_id": {json.dumps(custom_id)}, "method": "POST"'
    return f'{head}, "url": "/v1/chat/completions", "body": {body}}}\n'.encode()


def faults_of(database: Database, lines: Sequence[bytes]) -> list[str]:
    with pytest.raises(InvalidRequestsError) as refusal:
        submit_lines(database, lines, NEW)
    return [str(fault) for fault in refusal.value.faults]


def assert_nothing_stored(database: Database) -> None:
    assert {name: count(database, name) for name in ("job", "batch", "file")} == {
        "job": 0,
        "batch": 0,
        "file": 0,
    }


def test_a_file_becomes_a_batch_of_its_lines_in_their_order(database: Database) -> None:
    lines = [line("b"), b"\n", line("a"), BODY.encode()]
    submitted = submit_lines(database, lines, NewBatch("f.jsonl", "bulk", 7, "key-1"))
    assert submitted.total == 3
    found = batch_of(database, submitted.batch_id)
    assert (found.state, found.total, found.priority) == (BatchState.IN_PROGRESS, 3, 7)
    rows = [raw_job(database, job_id) for job_id in job_ids(database, submitted.batch_id)]
    assert [(row["line"], row["custom_id"]) for row in rows] == [(1, "b"), (3, "a"), (4, "4")]
    assert sorted(row["id"] for row in rows) == [row["id"] for row in rows]
    assert {(row["body"], row["state"], row["priority"]) for row in rows} == {
        (BODY, State.QUEUED, 7)
    }


def test_what_a_batch_was_read_from_is_remembered(database: Database) -> None:
    lines = [line("a"), b"\n", line("b")]
    submit_lines(database, lines, NEW)
    with database.read() as connection:
        row = connection.execute(select(file)).one()
    content = b"".join(lines)
    assert (row.name, row.bytes, row.lines) == ("requests.jsonl", len(content), 3)
    assert row.sha256 == hashlib.sha256(content).hexdigest()


def test_one_bad_line_far_down_leaves_nothing_of_the_file(database: Database) -> None:
    lines = [line(f"id-{n}") for n in range(CHUNK + 10)]
    lines[CHUNK + 5] = b"{}\n"
    lines[3] = b"nonsense\n"
    faults = faults_of(database, lines)
    assert [fault.partition(":")[0] for fault in faults] == [
        "line 4", *["line 2006"] * (len(faults) - 1),
    ]  # fmt: skip
    assert_nothing_stored(database)


def test_a_custom_id_used_twice_is_a_fault_within_a_chunk_and_across_chunks(
    database: Database,
) -> None:
    lines = [line(f"id-{n}") for n in range(2 * CHUNK + 5)]
    lines[9] = line("id-2")
    lines[CHUNK + 1] = line("id-1")
    lines[2 * CHUNK + 2] = line(f"id-{CHUNK + 3}")
    assert faults_of(database, lines) == [
        "line 10: custom_id: 'id-2' is used on line 3 already",
        f"line {CHUNK + 2}: custom_id: 'id-1' is used on line 2 already",
        f"line {2 * CHUNK + 3}: custom_id: 'id-{CHUNK + 3}' is used on line {CHUNK + 4} already",
    ]
    assert_nothing_stored(database)


@pytest.mark.parametrize("lines", [[], [b"\n", b"  \n"]])
def test_a_file_without_a_request_is_refused(database: Database, lines: list[bytes]) -> None:
    assert faults_of(database, lines) == ["there is no request in it"]
    assert_nothing_stored(database)


def test_a_line_that_is_too_long_is_a_fault_and_the_rest_is_still_checked(
    database: Database,
) -> None:
    lines = [line("a"), b"x" * (MAX_LINE_BYTES + 1), b"nonsense"]
    faults = faults_of(database, lines)
    assert faults[0] == f"line 2: is longer than {MAX_LINE_BYTES} bytes"
    assert faults[1].startswith("line 3: ")


def test_a_reader_that_fails_leaves_nothing(database: Database) -> None:
    def broken() -> Iterator[bytes]:
        for number in range(CHUNK + 1):
            yield line(f"id-{number}")
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        submit_lines(database, broken(), NEW)
    assert_nothing_stored(database)


def test_progress_tells_the_bytes_read(database: Database) -> None:
    lines = [line(f"id-{n}") for n in range(2 * CHUNK)]
    told: list[int] = []
    submit_lines(database, lines, NEW, told.append)
    assert told == [sum(map(len, lines[:CHUNK])), sum(map(len, lines))]


def test_the_same_key_finds_the_first_batch(database: Database) -> None:
    new = NewBatch("f", "bulk", 0, "the-key")
    first = submit_lines(database, [line("a")], new)
    again = submit_lines(database, [line("b")], new)
    assert (again.batch_id, again.existed) == (first.batch_id, True)
    assert (count(database, "job"), count(database, "batch")) == (1, 1)


def test_the_same_key_at_the_same_time_makes_one_batch(database: Database) -> None:
    def submit() -> Submitted:
        lines = [line(f"id-{n}") for n in range(50)]
        return submit_lines(database, lines, NewBatch("f", "bulk", 0, "the-key"))

    made = all_at_once(*[submit] * 4)
    assert len({one.batch_id for one in made}) == 1
    assert [one.existed for one in made].count(False) == 1
    assert (count(database, "job"), count(database, "batch"), count(database, "file")) == (50, 1, 1)


def test_a_released_key_can_be_used_again(database: Database) -> None:
    new = NewBatch("f", "bulk", 0, "the-key")
    first = submit_lines(database, [line("a")], new)
    with database.write() as connection:
        submission.release_key(connection, "the-key")
    assert not submit_lines(database, [line("a")], new).existed
    assert batch_of(database, first.batch_id).total == 1


def test_a_batch_that_is_being_submitted_is_shown_nowhere(database: Database) -> None:
    batch_id = fill_batch(database, 2)
    with database.read() as connection:
        assert queries.get_batch(connection, batch_id) is None
        assert queries.list_batches(connection, 10) == []
        assert queries.list_jobs(connection, queries.JobFilter(), 10) == []


def test_a_batch_without_jobs_is_finished_when_it_is_opened(database: Database) -> None:
    found = batch_of(database, submit_batch(database, 0))
    assert found.state is BatchState.COMPLETED
    assert found.finished_at is not None


def test_a_chunk_with_a_taken_id_is_not_stored_at_all(database: Database) -> None:
    batch_id = fill_batch(database, 2)
    taken = submission.add_jobs(
        database, batch_id, NEW, [new_job(3), new_job(4, "line-2"), new_job(5, "line-1")]
    )
    assert taken == {"line-2": 2, "line-1": 1}
    assert len(job_ids(database, batch_id)) == 2


def test_the_same_custom_id_is_free_in_another_batch(database: Database) -> None:
    first, second = submit_batch(database, 1), submit_batch(database, 1)
    for batch_id in (first, second):
        (job_id,) = job_ids(database, batch_id)
        assert raw_job(database, job_id)["custom_id"] == "line-1"


def test_jobs_for_a_batch_that_is_gone_are_an_error_not_a_silent_loss(database: Database) -> None:
    batch_id = fill_batch(database, 1)
    submission.drop_batch(database, batch_id)
    with pytest.raises(ConflictError):
        submission.add_jobs(database, batch_id, NEW, [new_job(1)])


def test_a_batch_that_was_dropped_meanwhile_cannot_be_opened(database: Database) -> None:
    batch_id = fill_batch(database, 1)
    submission.drop_batch(database, batch_id)
    with pytest.raises(NotFoundError), database.write() as connection:
        submission.open_batch(connection, batch_id, 1, None, None)


def test_a_dropped_batch_takes_its_jobs_with_it_and_no_others(database: Database) -> None:
    kept, dropped = submit_batch(database, 2), fill_batch(database, 3)
    submission.drop_batch(database, dropped)
    assert job_ids(database, dropped) == []
    assert len(job_ids(database, kept)) == 2
    assert count(database, "batch") == 1


def test_dropping_leaves_an_opened_batch_as_it_is(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    submission.drop_batch(database, batch_id)
    assert len(job_ids(database, batch_id)) == 2
    assert batch_of(database, batch_id).total == 2


def test_submissions_that_died_long_ago_are_found(database: Database) -> None:
    old, young, opened = fill_batch(database, 1), fill_batch(database, 1), submit_batch(database, 1)
    with database.write() as connection:
        long_ago = datetime.now(UTC) - timedelta(hours=7)
        connection.execute(
            update(batch).where(batch.c.id.in_([old, opened])).values(created_at=long_ago)
        )
    with database.read() as connection:
        assert submission.abandoned_batches(connection, 6 * 3600) == [old]
    assert young != old


def test_a_huge_body_is_stored_verbatim(database: Database) -> None:
    body = BODY.replace("🙂", "🙂" * 2_000_000)
    submitted = submit_lines(database, [line("a", body)], NEW)
    assert raw_job(database, job_ids(database, submitted.batch_id)[0])["body"] == body


def test_lines_that_are_too_long_are_read_without_holding_them() -> None:
    class Endless:
        """A file of one line that never ends, until it does."""

        def __init__(self) -> None:
            self.left = 3 * MAX_LINE_BYTES

        def readline(self, size: int) -> bytes:
            given = min(size, self.left)
            self.left -= given
            return b"x" * given

    lengths = [len(one) for one in read_lines(Endless())]  # type: ignore[arg-type]  # reads as a file
    assert lengths == [MAX_LINE_BYTES + 1]


def test_counts_of_all_jobs_leave_out_what_is_being_submitted(database: Database) -> None:
    fill_batch(database, 3)
    submit_batch(database, 2)
    submit_single(database)
    with database.read() as connection:
        assert queries.count_states(connection) == {State.QUEUED: 3}


def test_a_warning_is_told_once_with_how_many_there_were(database: Database) -> None:
    odd = BODY.replace("gpt-5.1", "unheard-of")
    submitted = submit_lines(database, [line("a")] + [line(f"id-{n}", odd) for n in range(50)], NEW)
    assert [(one.first.line, one.first.field, one.count) for one in submitted.warnings] == [
        (2, "body.model", 50)
    ]


def test_every_line_of_a_wholly_broken_file_is_told_in_order(database: Database) -> None:
    lines = [b"{}\n" if n % 2 else b"nonsense\n" for n in range(2 * CHUNK + 3)]
    faults = faults_of(database, lines)
    told = [int(fault.partition(":")[0].removeprefix("line ")) for fault in faults]
    assert sorted(set(told)) == list(range(1, len(lines) + 1))
    assert told == sorted(told)
    assert_nothing_stored(database)


# --- submissions that die -------------------------------------------------------------------------

_SUBMITTER = """
import sys
from worker.batches import read_lines, submit_lines
from worker.store.engine import Database
from worker.store.submission import NewBatch
with Database(sys.argv[1]) as database:
    submit_lines(database, read_lines(sys.stdin.buffer), NewBatch("f", "bulk", 0, "the-key"))
"""


def test_a_killed_submission_is_seen_nowhere_and_the_same_key_works_again(
    database: Database,
) -> None:
    lines = [line(f"id-{n}") for n in range(CHUNK + 500)]
    url = database.engine.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", _SUBMITTER, url],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as submitter:
        assert submitter.stdin is not None
        submitter.stdin.write(b"".join(lines))
        submitter.stdin.flush()  # and more would come
        wait_until(lambda: count(database, "job") == CHUNK, "the first chunk is stored")
        submitter.kill()
    with database.read() as connection:
        (left,) = connection.scalars(select(batch.c.id)).all()
        job_id = str(connection.scalar(select(job.c.id).limit(1)))
        assert queries.count_states(connection) == {}
        assert queries.list_batches(connection, 10) == []
        assert queries.get_batch(connection, left) is None
        assert queries.get_job(connection, job_id) is None
        assert queries.list_jobs(connection, queries.JobFilter(), 10) == []
        assert submission.batch_with_key(connection, "the-key") is None
        assert submission.abandoned_batches(connection) == []  # it may be alive, for all we know
    with database.write() as connection:
        assert queries.take_reports(connection, 0, 0) == []  # what Flower is told of
    assert lanes(database) == []
    assert claim(database, enlist(database), **{left: 10}) == []

    new = NewBatch("f", "bulk", 0, "the-key")
    first, again = (submit_lines(database, lines, new) for _ in range(2))
    assert (first.existed, again.existed, again.batch_id) == (False, True, first.batch_id)
    with database.write() as connection:
        long_ago = datetime.now(UTC) - timedelta(hours=7)
        connection.execute(update(batch).where(batch.c.id == left).values(created_at=long_ago))
    with database.read() as connection:
        assert submission.abandoned_batches(connection) == [left]
    submission.drop_batch(database, left)
    assert counts(database) == {"job": len(lines), "batch": 1, "file": 1}


def counts(database: Database) -> dict[str, int]:
    return {name: count(database, name) for name in ("job", "batch", "file")}


def test_two_who_remove_the_same_remains_remove_them_once(database: Database) -> None:
    kept, left = submit_batch(database, 2), fill_batch(database, 4_500)
    all_at_once(*[lambda: submission.drop_batch(database, left)] * 3)
    assert counts(database) == {"job": 2, "batch": 1, "file": 0}
    assert len(job_ids(database, kept)) == 2


@contextmanager
def without_room(database: Database) -> Iterator[None]:
    """As if the disk were full (SQLite), or the server away (PostgreSQL)."""
    if database.is_sqlite:
        with database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        try:
            yield
        finally:
            with database.write() as connection:
                connection.exec_driver_sql("PRAGMA max_page_count = 1073741823")
        return
    name, url = database.engine.url.database, database.engine.url.set(drivername="postgresql")
    elsewhere = url.set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        connection.execute(allow.format(sql.Identifier(str(name)), sql.SQL("false")))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(str(name)), sql.SQL("true")))


@pytest.fixture
def own(empty_url: str) -> Iterator[Database]:
    """A database of this test's own: it is made to fail."""
    with Database(empty_url) as database:
        schema.migrate(database)
        yield database


def test_a_database_lost_half_way_is_told_and_leaves_nothing_to_be_seen(own: Database) -> None:
    whole = [line(f"id-{n}") for n in range(2 * CHUNK)]
    new = NewBatch("f", "bulk", 0, "the-key")
    with ExitStack() as trouble:

        def lines() -> Iterator[bytes]:
            yield from whole[:CHUNK]
            yield whole[CHUNK]  # by now the first chunk is stored
            trouble.enter_context(without_room(own))
            yield from whole[CHUNK + 1 :]

        with pytest.raises(DatabaseError, match="the database cannot be used: "):
            submit_lines(own, lines(), new)
    with own.read() as connection:
        assert queries.count_states(connection) == {}
        assert queries.list_batches(connection, 10) == []
        assert submission.batch_with_key(connection, "the-key") is None
    assert lanes(own) == []
    again = submit_lines(own, whole, new)
    assert (again.total, again.existed) == (2 * CHUNK, False)
    assert batch_of(own, again.batch_id).state is BatchState.IN_PROGRESS
