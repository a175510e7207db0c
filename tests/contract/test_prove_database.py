"""What `chatqueue prove` does in a database, on both kinds of it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.contract.acts import (
    answer,
    cancel_batch,
    claim,
    claim_due,
    count,
    enlist,
    job_ids,
    job_of,
    lose,
    outcome_of,
    put,
    put_off,
    rescue,
    submit_batch,
)
from worker.store import schema, scratch
from worker.store.engine import Database
from worker.store.scratch import Books, read_books, read_progress


@pytest.fixture
def audited(empty_url: str) -> Iterator[Database]:
    """A new database with the triggers in it."""
    with Database(empty_url) as database:
        schema.migrate(database)
        scratch.install_audit(database)
        yield database


def books(database: Database) -> Books:
    return read_books(database)


def test_the_end_of_a_job_is_written_down_once(audited: Database) -> None:
    batch_id = submit_batch(audited, 2)
    (one, other) = claim(audited, enlist(audited), **{batch_id: 2})
    assert books(audited).changes == ()
    put(audited, outcome_of(one, answer()), outcome_of(other, answer()))
    seen = {(one.job_id, one.before, one.after) for one in books(audited).changes}
    assert seen == {(ident, "running", "succeeded") for ident in job_ids(audited, batch_id)}
    assert len(books(audited).changes) == 2


def test_a_change_after_the_end_is_written_down_too(audited: Database) -> None:
    batch_id = submit_batch(audited, 1)
    cancel_batch(audited, batch_id)
    with audited.write() as connection:
        connection.execute(text("UPDATE job SET error_message = 'written over'"))
    seen = [(one.before, one.after) for one in books(audited).changes]
    assert seen == [("queued", "cancelled"), ("cancelled", "cancelled")]


def test_a_call_that_is_given_up_is_written_down_whatever_becomes_of_it(audited: Database) -> None:
    batch_id = submit_batch(audited, 1)
    worker = enlist(audited)
    (one,) = claim(audited, worker, **{batch_id: 1})
    lose(audited, worker)
    assert rescue(audited) == 1
    put(audited, outcome_of(one, answer()))  # it comes late
    (loss,) = read_progress(audited, 0).losses
    assert (loss.job_id, loss.fence, loss.worker_id) == (one.id, one.fence, worker)
    assert loss.error_code == "worker_lost"
    assert read_progress(audited, loss.number).losses == ()


def test_progress_tells_what_ended_and_who_holds_the_rest(audited: Database) -> None:
    batch_id = submit_batch(audited, 3)
    one, *_ = claim(audited, enlist(audited), **{batch_id: 2})
    put(audited, outcome_of(one, answer()))
    found = read_progress(audited, 0)
    assert (found.done, list(found.held.values())) == (1, [1])


def test_the_books_have_every_row(audited: Database) -> None:
    batch_id = submit_batch(audited, 2)
    one, _ = claim(audited, enlist(audited), **{batch_id: 2})
    put(audited, outcome_of(one, answer()))
    found = books(audited)
    assert [row.id for row in found.jobs] == job_ids(audited, batch_id)
    assert [(row.id, row.total, row.succeeded) for row in found.batches] == [(batch_id, 2, 1)]
    assert [row.state for row in found.attempts] == ["answered", "prepared"]
    assert len(found.workers) == count(audited, "worker") == 1


def test_moving_time_moves_every_time_and_counts_as_no_change(audited: Database) -> None:
    batch_id = submit_batch(audited, 2)
    done, put_aside = claim(audited, enlist(audited), **{batch_id: 2})
    put(audited, outcome_of(done, answer()))
    put_off(audited, put_aside, 600.0)
    before = job_of(audited, done.id)
    scratch.move_time(audited, -3_600.0)
    after = job_of(audited, done.id)
    assert before.finished_at is not None
    assert after.finished_at is not None
    assert (before.finished_at - after.finished_at).total_seconds() == pytest.approx(3_600)
    assert (before.created_at - after.created_at).total_seconds() == pytest.approx(3_600)
    assert len(books(audited).changes) == 1
    assert [one.id for one in claim_due(audited, enlist(audited))] == [put_aside.id]


def test_a_schema_of_its_own_touches_nothing_else(postgres_server: str) -> None:
    url = postgres_server.format("postgres").replace("postgresql:", "postgresql+psycopg:")
    own = scratch.in_schema(url, "prove_test")
    scratch.create_schema(url, "prove_test")
    try:
        with Database(own) as database:
            schema.migrate(database)
            scratch.install_audit(database)
            with database.read() as connection:
                assert connection.scalar(text("SELECT current_schema()")) == "prove_test"
                assert connection.scalar(text("SHOW timezone")) == "UTC"
            assert submit_batch(database, 1)
        with Database(url) as elsewhere, elsewhere.read() as connection:
            assert connection.scalar(text("SELECT to_regclass('job')")) is None
    finally:
        scratch.drop_schema(url, "prove_test")
    with Database(url) as database, database.read() as connection:
        there = text("SELECT count(*) FROM pg_namespace WHERE nspname = 'prove_test'")
        assert connection.scalar(there) == 0


def test_urls_lead_through_a_port_of_this_machine_and_keep_the_name_of_the_host() -> None:
    url = "postgresql+psycopg://u:p%40w@db.example:5433/name?sslmode=require&options=-cx%3Dy"
    assert scratch.address(url) == ("db.example", 5433)
    led = scratch.by_way_of(url, 7001)
    assert led.startswith("postgresql+psycopg://u:p%40w@db.example:7001/name?")
    assert "hostaddr=127.0.0.1" in led
    assert "sslmode=require" in led
    own = scratch.in_schema(url, "own")
    assert "-cx%3Dy" in own
    assert "search_path%3Down" in own


def test_urls_of_unix_sockets_lead_through_the_port_too() -> None:
    url = "postgresql+psycopg://u@/name?host=/run/pg"
    assert scratch.address(url) == ("/run/pg", 5432)
    assert scratch.by_way_of(url, 7001) == "postgresql+psycopg://u@127.0.0.1:7001/name"
