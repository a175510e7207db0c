from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update

from tests.contract.acts import (
    ENDPOINT,
    claim,
    claim_due,
    claim_one,
    enlist,
    failure,
    outcome_of,
    put,
    submit_batch,
    submit_single,
)
from worker.jobs.states import State
from worker.models import attempt, job
from worker.prices import read_price
from worker.spending import Spent, spent, total
from worker.store.engine import Database
from worker.store.usage import SINGLES, By, usage

PRICES = [read_price("gpt-5.1=100000/10000/1000000")]  # 0.1, 0.01 and 1 dollar a token


def used(database: Database, by: By, **within: Any) -> list[Spent]:
    with database.read() as connection:
        return spent(usage(connection, by, **within), PRICES)


def test_calls_are_counted_by_what_they_came_to_and_what_retries_cost_is_told(
    database: Database,
) -> None:
    """Two answers, one after a failure that counted tokens; one call lost; one under way."""
    batch_id = submit_batch(database, 4)
    worker_id = enlist(database)
    first, second, third, _ = claim(database, worker_id, **{batch_id: 4})
    put(database, outcome_of(first))
    spoilt = failure(usage=outcome_of(first).exchange.outcome.usage)
    put(database, outcome_of(second, spoilt, State.WAITING, delay_seconds=0))
    (again,) = claim_due(database, worker_id)
    put(database, outcome_of(again))
    with database.write() as connection:
        connection.execute(
            update(attempt).where(attempt.c.job_id == third.id).values(state="unknown")
        )
    (line,) = used(database, By.BATCH)
    # 11 in of which 3 cached, 7 out: 8 * 0.1 + 3 * 0.01 + 7
    one = Decimal("7.83")
    assert line == Spent(batch_id, 5, 2, 1, 1, 1, 33, 9, 21, 6, 3 * one, one)


def test_a_claim_that_was_given_back_is_no_retry(database: Database) -> None:
    job_id = submit_single(database)
    worker_id = enlist(database)
    with database.write() as connection:
        connection.execute(update(job).where(job.c.id == job_id).values(fence=3))
    claimed = claim_one(database, worker_id, job_id)
    assert claimed is not None
    put(database, outcome_of(claimed))
    (line,) = used(database, By.BATCH)
    assert (line.key, line.calls, line.retries) == (SINGLES, 1, 0)


def test_it_is_told_apart_by_day_model_batch_and_endpoint(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    today, before = claim(database, worker_id, **{batch_id: 2})
    put(database, outcome_of(today), outcome_of(before))
    night = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    with database.write() as connection:
        connection.execute(
            update(attempt).where(attempt.c.job_id == before.id).values(prepared_at=night)
        )
    days = [one.key for one in used(database, By.DAY)]
    assert days == ["2026-03-01", f"{datetime.now(UTC):%Y-%m-%d}"]
    for by, key in ((By.MODEL, "gpt-5.1"), (By.BATCH, batch_id), (By.ENDPOINT, ENDPOINT)):
        assert [(one.key, one.answered) for one in used(database, by)] == [(key, 2)]
    only = used(database, By.DAY, since=night, until=night + timedelta(seconds=1))
    assert [one.key for one in only] == ["2026-03-01"]
    assert used(database, By.DAY, until=night) == []


def test_a_model_without_a_price_has_no_cost_rather_than_none_at_all(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    (claimed,) = claim(database, enlist(database), **{batch_id: 1})
    put(database, outcome_of(claimed))
    with database.read() as connection:
        found = usage(connection, By.MODEL)
    (line,) = spent(found, [])
    assert (line.cost, line.cost_in_vain) == (None, Decimal(0))
    assert total([line]).cost is None


@pytest.mark.parametrize("by", By)
def test_nothing_used_is_nothing_told(database: Database, by: By) -> None:
    assert used(database, by) == []
