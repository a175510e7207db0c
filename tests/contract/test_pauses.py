from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from tests.contract.acts import (
    all_at_once,
    claim_due,
    claim_one,
    enlist,
    failure,
    outcome_of,
    put,
    raw_job,
    submit_single,
)
from worker.jobs.outcomes import ErrorClass
from worker.jobs.states import State
from worker.models import pause
from worker.store import pauses
from worker.store.claims import Claimed
from worker.store.engine import Database, RefusedError
from worker.store.pauses import FIRST_PROBE_SECONDS, PROBE_LEASE_SECONDS, Pause, Refusal

KEY = "0123456789ab"
OTHER = "ba9876543210"
REFUSAL = Refusal(KEY, "insufficient_quota", "no credit", "https://first.example", None)


@pytest.fixture
def early(database: Database) -> Claimed:
    """A call that is begun before anything else happens."""
    return call(database)


def call(database: Database) -> Claimed:
    """Begin a call."""
    found = claim_one(database, enlist(database), submit_single(database))
    assert found is not None
    return found


def begin(database: Database, one: Claimed, refusal: Refusal = REFUSAL) -> None:
    with database.write() as connection:
        pauses.begin(connection, refusal, one.id, one.fence)


def end(database: Database, one: Claimed, key: str = KEY) -> None:
    with database.write() as connection:
        pauses.end_if_proved(connection, key, one.id, one.fence)


def active(database: Database) -> list[Pause]:
    with database.read() as connection:
        return pauses.active(connection)


def take(database: Database, key: str = KEY) -> bool:
    with database.write() as connection:
        return pauses.take_probe(connection, key)


def make_due(database: Database) -> None:
    """Let every pause be old enough for a probe."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    with database.write() as connection:
        connection.execute(update(pause).values(probe_at=past))


def test_a_refused_call_pauses_its_key(database: Database, early: Claimed) -> None:
    assert active(database) == []
    begin(database, early)
    (found,) = active(database)
    assert (found.key, found.code, found.message, found.endpoint, found.refusals) == (
        KEY, "insufficient_quota", "no credit", "https://first.example", 1,
    )  # fmt: skip
    assert FIRST_PROBE_SECONDS - 10 < found.probe_seconds <= FIRST_PROBE_SECONDS
    assert abs(found.since - datetime.now(UTC)) < timedelta(seconds=30)


def test_pauses_are_listed_by_their_keys(database: Database, early: Claimed) -> None:
    for key in (OTHER, KEY):
        begin(database, early, replace(REFUSAL, key=key))
    assert [one.key for one in active(database)] == [KEY, OTHER]


def test_no_probe_goes_before_it_is_due(database: Database, early: Claimed) -> None:
    begin(database, early)
    assert not take(database)
    assert not take(database, OTHER)
    make_due(database)
    assert take(database)


def test_of_many_who_want_to_probe_at_once_one_may(database: Database, early: Claimed) -> None:
    begin(database, early)
    make_due(database)
    assert sorted(all_at_once(*[lambda: take(database)] * 8)) == [False] * 7 + [True]
    (found,) = active(database)
    assert PROBE_LEASE_SECONDS - 10 < found.probe_seconds <= PROBE_LEASE_SECONDS


def test_each_refused_probe_doubles_the_wait_up_to_a_longest(
    database: Database, early: Claimed
) -> None:
    begin(database, early)
    (first,) = active(database)
    waits = [first.probe_seconds]
    for _ in range(6):
        begin(database, call(database))
        (found,) = active(database)
        assert found.since == first.since
        waits.append(found.probe_seconds)
    assert found.refusals == 7
    expected = [FIRST_PROBE_SECONDS * n for n in (1, 2, 4, 8, 16, 16, 16)]
    assert all(wish - 10 < wait <= wish for wait, wish in zip(waits, expected, strict=True))


@pytest.mark.parametrize("wait", [2.0, 3_000.0])
def test_the_wait_that_the_server_asks_for_wins(
    database: Database, early: Claimed, wait: float
) -> None:
    begin(database, early, replace(REFUSAL, wait_seconds=wait))
    (found,) = active(database)
    assert wait - 10 < found.probe_seconds <= wait


def test_a_refused_probe_tells_what_is_wrong_now(database: Database, early: Claimed) -> None:
    begin(database, early)
    begin(database, call(database), replace(REFUSAL, code="invalid_api_key", message="who?"))
    (found,) = active(database)
    assert (found.code, found.message) == ("invalid_api_key", "who?")


def test_a_call_from_before_the_pause_tells_nothing_new(database: Database, early: Claimed) -> None:
    begin(database, call(database))
    before = active(database)
    begin(database, early, replace(REFUSAL, code="other", wait_seconds=500.0))
    end(database, early)
    (found,) = active(database)
    assert replace(found, probe_seconds=0) == replace(before[0], probe_seconds=0)
    assert found.probe_seconds <= FIRST_PROBE_SECONDS


def test_a_call_begun_since_that_was_not_refused_ends_it(
    database: Database, early: Claimed
) -> None:
    for key in (KEY, OTHER):
        begin(database, early, replace(REFUSAL, key=key))
    end(database, call(database))
    assert [one.key for one in active(database)] == [OTHER]


def test_a_pause_that_ended_begins_anew_with_the_shortest_wait(
    database: Database, early: Claimed
) -> None:
    begin(database, early)
    begin(database, call(database))
    end(database, call(database))
    begin(database, call(database))
    (found,) = active(database)
    assert found.refusals == 1
    assert found.probe_seconds <= FIRST_PROBE_SECONDS


def test_all_pauses_end_at_a_word(database: Database, early: Claimed) -> None:
    for key in (KEY, OTHER):
        begin(database, early, replace(REFUSAL, key=key))
    with database.write() as connection:
        assert sorted(pauses.end_all(connection)) == [KEY, OTHER]
        assert pauses.end_all(connection) == []
    assert active(database) == []


def refused(database: Database, *calls: Claimed, refusal: Refusal = REFUSAL) -> None:
    """Record that these calls were refused, all at once."""
    failed = failure(error_class=ErrorClass.PAUSE, code="insufficient_quota", status=402)
    put(
        database,
        *(
            outcome_of(one, failed, State.WAITING, burns_attempt=False, refusal=refusal)
            for one in calls
        ),
    )


def test_the_record_of_a_refusal_begins_the_pause(database: Database, early: Claimed) -> None:
    refused(database, early)
    assert [one.key for one in active(database)] == [KEY]
    assert raw_job(database, early.id)["state"] == State.WAITING


def test_a_record_that_cannot_be_written_pauses_nothing(database: Database, early: Claimed) -> None:
    broken = replace(REFUSAL, key=None)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(RefusedError):
        refused(database, early, refusal=broken)
    assert active(database) == []
    assert raw_job(database, early.id)["state"] == State.RUNNING


def test_of_many_refusals_recorded_together_one_counts(database: Database, early: Claimed) -> None:
    refused(database, early, call(database), call(database))
    (found,) = active(database)
    assert found.refusals == 1


def test_refusals_recorded_by_many_at_once_make_one_pause(
    database: Database, early: Claimed
) -> None:
    calls = [early, *(call(database) for _ in range(5))]
    all_at_once(*[lambda one=one: refused(database, one) for one in calls])
    (found,) = active(database)
    assert found.refusals == 1


def test_the_record_of_an_answer_ends_the_pause(database: Database, early: Claimed) -> None:
    refused(database, early)
    probe = call(database)
    put(database, outcome_of(probe, proves=KEY))
    assert active(database) == []
    assert raw_job(database, probe.id)["state"] == State.SUCCEEDED


def test_the_record_of_an_answer_from_before_the_pause_leaves_it(
    database: Database, early: Claimed
) -> None:
    refused(database, call(database))
    put(database, outcome_of(early, proves=KEY))
    assert [one.key for one in active(database)] == [KEY]
    assert raw_job(database, early.id)["state"] == State.SUCCEEDED


def test_a_refused_job_waits_where_it_can_be_claimed_again(
    database: Database, early: Claimed
) -> None:
    refused(database, early)
    assert [one.id for one in claim_due(database, enlist(database))] == [early.id]
