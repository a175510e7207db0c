"""What a person decides: holding, pausing, deadlines, cancelling in steps, running again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from tests.contract.acts import (
    ENDPOINT,
    assert_counters_match_rows,
    batch_of,
    cancel_batch,
    cancel_job,
    claim,
    claim_due,
    claim_one,
    enlist,
    failure,
    fill_batch,
    give_back,
    job_ids,
    job_of,
    lanes,
    ledger,
    lose,
    new_job,
    outcome_of,
    put,
    put_off,
    raw_job,
    rescue,
    run_again,
    submit_batch,
    submit_single,
)
from worker.errors import InvalidRequestsError
from worker.jobs.outcomes import ErrorClass
from worker.jobs.queues import BULK, INTERACTIVE
from worker.jobs.states import AttemptState, BatchState, State
from worker.models import batch, job
from worker.store import claims, endings, halts, leases, lost, queries, submission
from worker.store.engine import Database
from worker.store.redrive import Changed
from worker.store.submission import NewBatch, NewJob


def set_job(database: Database, job_id: str, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(update(job).where(job.c.id == job_id).values(**values))


def past(seconds: float = 1.0) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def settle(database: Database, *, again: bool, **which: str) -> int:
    with database.write() as connection:
        return lost.settle(connection, again=again, **which)


def fail_one(database: Database, worker_id: str, batch_id: str, **fields: Any) -> str:
    (claimed,) = claim(database, worker_id, **{batch_id: 1})
    fields = {"error_class": ErrorClass.PERMANENT, **fields}
    put(database, outcome_of(claimed, failure(**fields), State.FAILED))
    return claimed.id


# --- held for a person's decision -----------------------------------------------------------------


def test_what_a_dead_worker_leaves_is_held_where_the_policy_says_so(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 2})
    lose(database, worker_id)
    rescue(database, unknown_outcome="hold")
    for job_id in job_ids(database, batch_id):
        found = job_of(database, job_id)
        assert (found.state, found.error_code) == (State.HELD, "outcome_unknown")
    assert lanes(database) == []
    assert not batch_of(database, batch_id).is_finished
    with database.read() as connection:
        assert queries.count_held(connection, batch_id) == 2
        assert queries.count_unknown(connection, batch_id) == 2


def test_a_jobs_own_policy_goes_before_the_settings(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 3})
    for one, policy in zip(claimed, ("retry", "hold", None), strict=True):
        set_job(database, one.id, unknown_outcome=policy)
    lose(database, worker_id)
    rescue(database, unknown_outcome="fail")
    states = [job_of(database, one.id).state for one in claimed]
    assert states == [State.QUEUED, State.HELD, State.FAILED]
    assert_counters_match_rows(database, batch_id)


def test_a_stopping_worker_leaves_its_cut_calls_held_and_unburnt(database: Database) -> None:
    worker_id = enlist(database)
    claimed = claim_one(database, worker_id, submit_single(database))
    assert claimed is not None
    give_back(database, worker_id, [(claimed.id, claimed.fence)], "hold")
    found = job_of(database, claimed.id)
    assert (found.state, found.attempts) == (State.HELD, 0)


def test_a_call_that_may_have_been_billed_is_recorded_as_held(database: Database) -> None:
    worker_id = enlist(database)
    claimed = claim_one(database, worker_id, submit_single(database))
    assert claimed is not None
    put(database, outcome_of(claimed, failure(maybe_billed=True), State.HELD))
    found = job_of(database, claimed.id)
    assert (found.state, found.error_code) == (State.HELD, "server_error")
    assert ledger(database, claimed.id)[0]["state"] == AttemptState.ANSWERED
    with database.read() as connection:
        assert queries.count_unknown(connection) == 1


def test_held_jobs_are_called_again_if_a_person_says_so(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 2})
    lose(database, worker_id)
    rescue(database, unknown_outcome="hold")
    assert settle(database, again=True, batch_id=batch_id) == 2
    assert settle(database, again=True, batch_id=batch_id) == 0
    assert [one.fence for one in claim(database, enlist(database), **{batch_id: 2})] == [2, 2]


def test_held_jobs_fail_if_a_person_gives_them_up_and_the_batch_ends(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 2})
    lose(database, worker_id)
    rescue(database, unknown_outcome="hold")
    first, second = job_ids(database, batch_id)
    assert settle(database, again=False, job_id=first) == 1
    assert job_of(database, second).state is State.HELD
    assert settle(database, again=False, batch_id=batch_id) == 1
    found = batch_of(database, batch_id)
    assert (found.state, found.failed) == (BatchState.COMPLETED, 2)
    assert job_of(database, first).error_code == "outcome_unknown"


def test_a_late_answer_leaves_a_held_job_alone_and_shows_in_the_ledger(database: Database) -> None:
    worker_id = enlist(database)
    claimed = claim_one(database, worker_id, submit_single(database))
    assert claimed is not None
    lose(database, worker_id)
    rescue(database, unknown_outcome="hold")
    assert put(database, outcome_of(claimed)).job_ids == frozenset()
    assert job_of(database, claimed.id).state is State.HELD
    (row,) = ledger(database, claimed.id)
    assert (row["state"], row["maybe_billed"]) == (AttemptState.ANSWERED, False)


# --- taking over ----------------------------------------------------------------------------------


def test_a_worker_that_gave_a_sign_since_keeps_its_jobs(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 1})
    lose(database, worker_id)
    with database.write() as connection:
        dead = leases.signs_of_others(connection, "")
        leases.heartbeat(connection, worker_id, 60.0)
        assert lost.rescue(connection, dead, max_attempts=3, unknown_outcome="retry") == 0


def test_poison_tells_of_every_worker_that_died_of_it(database: Database) -> None:
    job_id = submit_single(database)
    for _ in range(3):
        worker_id = enlist(database)
        claim_one(database, worker_id, job_id)
        lose(database, worker_id)
        rescue(database, max_attempts=3)
    found = job_of(database, job_id)
    assert (found.state, found.error_code) == (State.FAILED, "poison")
    message = found.error_message or ""
    assert "3 of its calls ended with the death" in message
    assert message.count("w@host (") == 3


# --- deadlines ------------------------------------------------------------------------------------


def expire(database: Database) -> int:
    total = 0
    with database.write() as connection:
        total += endings.expire_jobs(connection)
        for batch_id in endings.overdue(connection):
            total += endings.expire_step(connection, batch_id)
    return total


def test_nothing_is_claimed_of_a_batch_past_its_deadline_and_it_ends_as_expired(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 3)
    worker_id = enlist(database)
    (early,) = claim(database, worker_id, **{batch_id: 1})
    with database.write() as connection:
        connection.execute(update(batch).where(batch.c.id == batch_id).values(expires_at=past()))
    assert claim(database, worker_id, **{batch_id: 3}) == []
    assert expire(database) == 2
    assert job_of(database, early.id).state is State.RUNNING  # its answer is paid for
    put(database, outcome_of(early))
    found = batch_of(database, batch_id)
    assert (found.state, found.succeeded, found.expired) == (BatchState.EXPIRED, 1, 2)
    assert_counters_match_rows(database, batch_id)


def test_a_batch_whose_answers_all_came_in_time_is_completed(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    (one,) = claim(database, enlist(database), **{batch_id: 1})
    with database.write() as connection:
        connection.execute(update(batch).where(batch.c.id == batch_id).values(expires_at=past()))
    put(database, outcome_of(one))
    assert batch_of(database, batch_id).state is BatchState.COMPLETED


@pytest.mark.parametrize("state", [State.QUEUED, State.WAITING, State.HELD])
def test_a_job_past_its_own_deadline_expires_wherever_it_waits(
    database: Database, state: State
) -> None:
    job_id = submit_single(database)
    due = {"due_at": datetime.now(UTC) + timedelta(hours=1)} if state is State.WAITING else {}
    set_job(database, job_id, state=state, expires_at=past(), error_code="server_error", **due)
    assert claim_one(database, enlist(database), job_id) is None
    assert (expire(database), expire(database)) == (1, 0)
    found = job_of(database, job_id)
    assert (found.state, found.error_code) == (State.EXPIRED, "server_error")
    assert found.finished_at is not None


def test_deadlines_are_stored_with_what_is_submitted(database: Database) -> None:
    new = NewBatch("", INTERACTIVE)
    one = NewJob(0, "", "{}", "gpt-5.1", multimodal=False, stream=False, expires_seconds=3600.0)
    with database.write() as connection:
        (job_id,) = submission.insert_jobs(connection, None, new, [one])
        (free,) = submission.insert_jobs(connection, None, new, [new_job(0)])
    expires = job_of(database, job_id).expires_at
    assert expires is not None
    assert 3500 < (expires - datetime.now(UTC)).total_seconds() < 3700
    assert job_of(database, free).expires_at is None
    batch_id = fill_batch(database, 1)
    with database.write() as connection:
        submission.open_batch(connection, batch_id, 1, None, None, expires_seconds=60.0)
    assert batch_of(database, batch_id).expires_at is not None


# --- pauses by a person ---------------------------------------------------------------------------


def test_nothing_of_a_paused_batch_is_claimed_until_it_goes_on(database: Database) -> None:
    batch_id, other = submit_batch(database, 1), submit_batch(database, 1)
    with database.write() as connection:
        halts.halt_batch(connection, batch_id)
        halts.halt_batch(connection, batch_id)
    assert [lane.batch_id for lane in lanes(database)] == [other]
    with database.write() as connection:
        assert halts.free_batch(connection, batch_id)
        assert not halts.free_batch(connection, batch_id)
    assert len(lanes(database)) == 2


def test_nothing_of_a_paused_queue_is_claimed_until_it_goes_on(database: Database) -> None:
    submit_batch(database, 1)
    single = submit_single(database, age_seconds=60)
    with database.write() as connection:
        halts.halt_queue(connection, INTERACTIVE)
        halts.halt_queue(connection, INTERACTIVE)
        assert [one.queue for one in halts.halted_queues(connection)] == [INTERACTIVE]
    assert all(lane.batch_id for lane in lanes(database))
    with database.write() as connection:
        halts.halt_queue(connection, BULK)
    assert lanes(database) == []
    with database.write() as connection:
        assert halts.free_queue(connection, INTERACTIVE)
        assert not halts.free_queue(connection, INTERACTIVE)
    assert [lane.batch_id for lane in lanes(database)] == [""]
    assert claim_one(database, enlist(database), single) is not None


# --- cancelling -----------------------------------------------------------------------------------


def test_a_batch_is_shut_before_its_jobs_are_ended(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    with database.write() as connection:
        endings.begin_cancelling(connection, batch_id)
    assert lanes(database) == []
    with database.read() as connection:
        assert endings.cancelling(connection) == [batch_id]
    assert cancel_batch(database, batch_id) == 3
    assert batch_of(database, batch_id).state is BatchState.CANCELLED


def test_cancelling_goes_on_step_by_step_in_every_open_state(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "STEP", 2)
    batch_id = submit_batch(database, 9)
    worker_id = enlist(database)
    running, waiting, held, good = claim(database, worker_id, **{batch_id: 4})
    put_off(database, waiting, 3600.0)
    put(database, outcome_of(held, failure(maybe_billed=True), State.HELD), outcome_of(good))
    assert cancel_batch(database, batch_id) == 8
    assert job_of(database, running.id).state is State.CANCELLED
    found = batch_of(database, batch_id)
    assert (found.state, found.cancelled, found.succeeded) == (BatchState.CANCELLED, 8, 1)
    assert_counters_match_rows(database, batch_id)


def test_the_calls_of_a_batch_are_cancelled_before_what_only_waits(database: Database) -> None:
    batch_id = submit_batch(database, 5)
    worker_id = enlist(database)
    calls = claim(database, worker_id, **{batch_id: 2})
    with database.write() as connection:
        endings.begin_cancelling(connection, batch_id)
        assert endings.cancel_calls(connection, batch_id) == 2
    assert {job_of(database, one.id).state for one in calls} == {State.CANCELLED}
    with database.read() as connection:
        assert leases.still_held(connection, worker_id) == {}
    assert batch_of(database, batch_id).cancelled == 2
    assert cancel_batch(database, batch_id) == 3


def test_an_answer_that_comes_while_its_batch_is_being_cancelled_counts(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    (one,) = claim(database, enlist(database), **{batch_id: 1})
    with database.write() as connection:
        endings.begin_cancelling(connection, batch_id)
    put(database, outcome_of(one))
    assert cancel_batch(database, batch_id) == 1
    found = batch_of(database, batch_id)
    assert (found.state, found.succeeded, found.cancelled) == (BatchState.CANCELLED, 1, 1)


# --- running again --------------------------------------------------------------------------------


def test_only_jobs_with_the_errors_that_are_named_run_again(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    worker_id = enlist(database)
    first = fail_one(database, worker_id, batch_id, code="content_policy")
    second = fail_one(database, worker_id, batch_id, code="server_error")
    third = fail_one(
        database, worker_id, batch_id, code="no_channel", error_class=ErrorClass.DIVERT
    )
    assert run_again(database, batch_id, errors=("nothing_like_it",)) == 0
    assert run_again(database, batch_id, errors=("server_error", "divert")) == 2
    states = [job_of(database, one).state for one in (first, second, third)]
    assert states == [State.FAILED, State.QUEUED, State.QUEUED]
    assert_counters_match_rows(database, batch_id)


def test_one_job_runs_again_though_it_was_cancelled(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    cancel_batch(database, batch_id)
    first, second = job_ids(database, batch_id)
    assert run_again(database, None, job_id=first) == 1
    assert run_again(database, None, job_id=first) == 0
    assert run_again(database, batch_id) == 0
    assert job_of(database, second).state is State.CANCELLED
    assert_counters_match_rows(database, batch_id)
    single = submit_single(database)
    cancel_job(database, single)
    assert run_again(database, None, job_id=single) == 1


def test_jobs_run_again_with_another_request_in_the_lane_of_its_model(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    for _ in range(2):
        fail_one(database, worker_id, batch_id)
    change = Changed('{"changed": 1}', "gpt-5.1-thinking", stream=True)
    assert run_again(database, batch_id, lambda *_: change) == 2
    (lane,) = lanes(database)
    assert lane.model == "gpt-5.1-thinking"
    claimed = claim(database, worker_id, **{batch_id: 2})
    assert {(one.body, one.model, one.stream, one.revision) for one in claimed} == {
        ('{"changed": 1}', "gpt-5.1-thinking", True, 1)
    }


def test_where_one_request_cannot_be_changed_none_is(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    for _ in range(2):
        fail_one(database, worker_id, batch_id)

    def change(body: str, line: int, custom_id: str) -> Changed:
        if line == 2:
            raise InvalidRequestsError([])
        return Changed(body + custom_id, "other", stream=False)

    with pytest.raises(InvalidRequestsError):
        run_again(database, batch_id, change)
    assert [job_of(database, one).state for one in job_ids(database, batch_id)] == [
        State.FAILED,
        State.FAILED,
    ]
    assert raw_job(database, job_ids(database, batch_id)[0])["model"] == "gpt-5.1"


def test_running_again_restores_what_was_used_up(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    (job_id,) = job_ids(database, batch_id)
    set_job(
        database, job_id, reasks=2, reasks_allowed=2, expires_at=datetime.now(UTC) + timedelta(1)
    )
    worker_id = enlist(database)
    (claimed,) = claim(database, worker_id, **{batch_id: 1})
    put_off(database, claimed, 0.0, reasks=1, followup="[]")
    (again,) = claim_due(database, worker_id)
    put(database, outcome_of(again, failure(), State.FAILED))
    run_again(database, batch_id)
    row = raw_job(database, job_id)
    assert (row["reasks"], row["followup"], row["attempts"]) == (2, None, 0)
    assert (row["expires_at"], row["revision"]) == (None, 1)  # what is asked differs: so its key


def test_a_deadline_that_is_over_ends_no_job_that_runs_again(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    with database.write() as connection:
        connection.execute(update(batch).where(batch.c.id == batch_id).values(expires_at=past()))
    assert expire(database) == 1
    assert run_again(database, batch_id) == 1
    assert batch_of(database, batch_id).expires_at is None
    with database.write() as connection:
        found = claims.claim_one(
            connection, "w", job_ids(database, batch_id)[0], lambda _: ENDPOINT
        )
    assert found is not None
