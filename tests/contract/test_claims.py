from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy import text, update

from tests.contract.acts import (
    ENDPOINT,
    all_at_once,
    batch_of,
    cancel_batch,
    cancel_job,
    claim,
    claim_due,
    claim_one,
    claim_singles,
    enlist,
    fill_batch,
    give_back,
    ids,
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
    submit_batch,
    submit_single,
)
from worker.jobs.ids import lane_id
from worker.jobs.queues import BULK
from worker.jobs.states import AttemptState, BatchState, State
from worker.models import batch, job
from worker.store import claims, leases, submission
from worker.store.claims import Claimed
from worker.store.engine import Database
from worker.store.lanes import SINGLES, lane_of, lanes_with_work
from worker.store.submission import NewBatch


def seen(database: Database) -> list[tuple[str, int]]:
    """The batches (or the single jobs) with work, and their priorities."""
    return [(lane.batch_id, lane.priority) for lane in lanes(database)]


def lane_of_batch(batch_id: str) -> str:
    return lane_id(batch_id, BULK, 0, "gpt-5.1", False)  # noqa: FBT003  # the kind's own form


def test_threads_claiming_one_lane_never_get_the_same_job_and_leave_none(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 200)
    workers = [enlist(database) for _ in range(5)]

    def drain(worker_id: str) -> list[Claimed]:
        found: list[Claimed] = []
        while claimed := claim(database, worker_id, **{batch_id: 7}):
            found += claimed
        return found

    taken = all_at_once(*(lambda worker_id=one: drain(worker_id) for one in workers))
    everything = [one.id for claimed in taken for one in claimed]
    # Rows that another claim holds are skipped, so one may end early: a last look takes the rest.
    everything += ids(drain(workers[0]))
    assert sorted(everything) == job_ids(database, batch_id)
    for worker_id, claimed in zip(workers[1:], taken[1:], strict=True):
        assert {raw_job(database, one.id)["worker_id"] for one in claimed} <= {worker_id}


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
def test_a_claim_takes_exactly_its_share_whatever_the_planner_knows(
    database: Database, size: int
) -> None:
    batch_id = submit_batch(database, size + 3)
    worker_id = enlist(database)
    with database.write() as connection:
        connection.execute(text("ANALYZE"))
    assert len(claim(database, worker_id, **{batch_id: size})) == size
    assert len(claim(database, worker_id, **{batch_id: 100})) == 3


def test_a_claim_brings_what_the_call_needs_and_marks_the_job_as_running(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 1)
    worker_id = enlist(database)
    (claimed,) = claim(database, worker_id, **{batch_id: 5})
    assert claimed == Claimed(
        id=job_ids(database, batch_id)[0], fence=1, batch_id=batch_id,
        lane_id=lane_of_batch(batch_id), body="{}", model="gpt-5.1", multimodal=False,
        stream=False, attempts=1, diverts=0, reasks=0, followup=None,
        revision=0, unknown_outcome=None,
    )  # fmt: skip
    row = raw_job(database, claimed.id)
    assert (row["state"], row["worker_id"], row["due_at"]) == (State.RUNNING, worker_id, None)
    assert abs(row["started_at"] - datetime.now(UTC)) < timedelta(seconds=30)


def test_the_ledger_has_a_row_for_each_claim_before_any_call(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    worker_id = enlist(database)
    for one in claim(database, worker_id, **{batch_id: 3}):
        (row,) = ledger(database, one.id)
        assert row["fence"] == one.fence
        assert (row["state"], row["worker_id"]) == (AttemptState.PREPARED, worker_id)
        assert (row["endpoint"], row["answered_at"]) == (ENDPOINT, None)


def test_a_claim_that_fails_before_it_commits_leaves_the_jobs_as_they_were(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)

    def nowhere(_: Claimed) -> str:
        raise LookupError

    (lane,) = lanes(database)
    with pytest.raises(LookupError), database.write() as connection:
        claims.claim_lane(connection, worker_id, lane, 2, nowhere)
    for job_id in job_ids(database, batch_id):
        assert job_of(database, job_id).state is State.QUEUED
        assert ledger(database, job_id) == []


def test_within_a_lane_priority_comes_first_then_the_order_of_the_lines(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 6)
    order = job_ids(database, batch_id)
    with database.write() as connection:
        connection.execute(update(job).where(job.c.id.in_(order[3:5])).values(priority=5))
    worker_id = enlist(database)
    taken = [ids(claim(database, worker_id, **{batch_id: 1}))[0] for _ in range(6)]
    assert taken == [order[3], order[4], order[0], order[1], order[2], order[5]]


def test_lanes_with_ready_jobs_are_listed_by_priority(database: Database) -> None:
    low, high = submit_batch(database, 1, priority=-1), submit_batch(database, 1, priority=9)
    middle = submit_batch(database, 1)
    submit_single(database, age_seconds=60)
    assert seen(database) == [(high, 9), (SINGLES, 0), (middle, 0), (low, -1)]


def test_a_batch_has_a_lane_for_each_model_kind_and_choice_of_endpoints(
    database: Database,
) -> None:
    batch_id = fill_batch(database, 1)
    own = ("https://a.example", "https://b.example")
    jobs = [
        replace(new_job(2), model="other"),
        replace(new_job(3), multimodal=True),
        replace(new_job(4), endpoints=own),
        replace(new_job(5), endpoints=own),
    ]
    submission.add_jobs(database, batch_id, NewBatch("requests.jsonl", BULK), jobs)
    with database.write() as connection:
        submission.open_batch(connection, batch_id, 5, None, None)
    found = {(one.model, one.multimodal, one.endpoints) for one in lanes(database)}
    assert found == {
        ("gpt-5.1", False, ()), ("other", False, ()), ("gpt-5.1", True, ()), ("gpt-5.1", False, own)
    }  # fmt: skip
    assert len(lanes(database)) == 4
    assert {one.batch_id for one in lanes(database)} == {batch_id}


def test_a_lane_tells_when_its_waiting_jobs_are_due(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    first, second = claim(database, worker_id, **{batch_id: 2})
    assert lanes(database) == []
    put_off(database, first, 3600.0)
    (lane,) = lanes(database)
    assert (lane.ready, lane.is_due, lane.claimable) == (False, False, False)
    assert lane.due_seconds == pytest.approx(3600.0, abs=20)
    put_off(database, second, -60.0)
    (lane,) = lanes(database)
    assert (lane.ready, lane.is_due, lane.claimable) == (False, True, True)


def test_the_lane_of_a_job_is_known_while_it_can_be_claimed(database: Database) -> None:
    job_id = submit_single(database)
    with database.read() as connection:
        lane = lane_of(connection, job_id)
    assert lane is not None
    assert (lane.batch_id, lane.model, lane.multimodal) == (SINGLES, "gpt-5.1", False)
    assert claim_one(database, enlist(database), job_id) is not None
    with database.read() as connection:
        assert lane_of(connection, job_id) is None
        assert lane_of(connection, "job_none") is None


def test_a_lane_closes_when_its_last_ready_job_is_claimed(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 1})
    assert seen(database) == [(batch_id, 0)]
    claim(database, worker_id, **{batch_id: 1})
    assert lanes(database) == []


def test_a_batch_that_is_still_being_submitted_is_no_lane(database: Database) -> None:
    fill_batch(database, 3)
    assert lanes(database) == []


def test_a_cancelled_batch_is_no_lane(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    cancel_batch(database, batch_id)
    assert lanes(database) == []
    assert claim(database, enlist(database), **{batch_id: 3}) == []


def test_lanes_of_another_queue_are_not_ours(database: Database) -> None:
    submit_batch(database, 1)
    with database.read() as connection:
        assert lanes_with_work(connection, "other", "other") == []


def test_a_single_job_is_left_to_its_own_message_for_five_seconds(database: Database) -> None:
    submit_single(database, age_seconds=3)
    worker_id = enlist(database)
    assert lanes(database) == []
    assert claim_singles(database, worker_id, 5) == []
    old = submit_single(database, age_seconds=6)
    assert seen(database) == [(SINGLES, 0)]
    assert ids(claim_singles(database, worker_id, 5)) == [old]


def test_a_single_job_can_be_claimed_by_its_id_at_once_and_only_once(database: Database) -> None:
    job_id = submit_single(database)
    workers = [enlist(database) for _ in range(4)]
    taken = all_at_once(
        *(lambda worker_id=one: claim_one(database, worker_id, job_id) for one in workers)
    )
    assert sum(one is not None for one in taken) == 1
    assert len(ledger(database, job_id)) == 1


def test_a_job_that_is_not_there_or_is_finished_cannot_be_claimed_by_its_id(
    database: Database,
) -> None:
    worker_id = enlist(database)
    assert claim_one(database, worker_id, "job_none") is None
    job_id = submit_single(database)
    claimed = claim_one(database, worker_id, job_id)
    assert claimed is not None
    put(database, outcome_of(claimed))
    assert claim_one(database, worker_id, job_id) is None


@pytest.fixture
def waiting(database: Database) -> tuple[str, list[Claimed]]:
    """Three jobs that wait: one long overdue, one just due, one not for an hour."""
    batch_id = submit_batch(database, 3)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 3})
    for one, delay in zip(claimed, (0.0, -60.0, 3600.0), strict=True):
        put_off(database, one, delay)
    return worker_id, claimed


def test_waiting_jobs_are_claimed_when_due_the_longest_overdue_first(
    database: Database, waiting: tuple[str, list[Claimed]]
) -> None:
    worker_id, (just_due, overdue, not_due) = waiting
    assert ids(claim_due(database, worker_id, 1)) == [overdue.id]
    assert ids(claim_due(database, worker_id)) == [just_due.id]
    assert job_of(database, not_due.id).state is State.WAITING


def test_the_time_to_the_next_due_job_is_told(
    database: Database, waiting: tuple[str, list[Claimed]]
) -> None:
    def until() -> float | None:
        return next((one.due_seconds for one in lanes(database)), None)

    worker_id, claimed = waiting
    assert until() == pytest.approx(-60.0, abs=20)
    claim_due(database, worker_id)
    assert until() == pytest.approx(3600.0, abs=20)
    assert claim_one(database, worker_id, claimed[2].id) is not None
    assert until() is None


@pytest.mark.parametrize("state", [BatchState.VALIDATING, BatchState.CANCELLING])
def test_due_jobs_of_a_batch_that_is_not_in_progress_are_held(
    database: Database, waiting: tuple[str, list[Claimed]], state: BatchState
) -> None:
    worker_id, _ = waiting
    with database.write() as connection:
        connection.execute(update(batch).values(state=state))
    assert claim_due(database, worker_id) == []


def test_waiting_single_jobs_are_claimed_when_due(database: Database) -> None:
    worker_id = enlist(database)
    claimed = claim_one(database, worker_id, submit_single(database))
    assert claimed is not None
    put_off(database, claimed, 0.0)
    assert ids(claim_due(database, worker_id)) == [claimed.id]


@pytest.mark.parametrize("delay", [0.0, 1e-7, 1e-3, 30.0, 7 * 86_400.0])
def test_any_delay_becomes_a_time_on_the_database_clock(database: Database, delay: float) -> None:
    claimed = claim_one(database, enlist(database), submit_single(database))
    assert claimed is not None
    put_off(database, claimed, delay)
    due = job_of(database, claimed.id).due_at
    assert due is not None
    assert abs((due - datetime.now(UTC)).total_seconds() - delay) < 30


def test_the_fence_rises_with_every_claim_and_attempts_count_them(database: Database) -> None:
    job_id = submit_single(database)
    fences = []
    for number in range(1, 5):
        worker_id = enlist(database)
        claimed = claim_one(database, worker_id, job_id)
        assert claimed is not None
        assert claimed.attempts == number
        fences.append(claimed.fence)
        put_off(database, claimed, 0.0)
    assert all(before < after for before, after in pairwise(fences))
    assert [row["fence"] for row in ledger(database, job_id)] == fences


def test_the_first_start_of_a_job_is_kept_over_later_claims(database: Database) -> None:
    worker_id = enlist(database)
    claimed = claim_one(database, worker_id, submit_single(database))
    assert claimed is not None
    started = job_of(database, claimed.id).started_at
    put_off(database, claimed, 0.0)
    claim_due(database, worker_id)
    assert job_of(database, claimed.id).started_at == started


def test_a_deadline_runs_from_the_first_start_and_is_not_moved(database: Database) -> None:
    worker_id = enlist(database)
    job_id = submit_single(database)
    ends = []
    for _ in range(2):
        with database.write() as connection:
            claimed = claims.claim_one(
                connection, worker_id, job_id, lambda _: ENDPOINT, deadline_seconds=100.0
            )
        assert claimed is not None
        put_off(database, claimed, 0.0)
        ends.append(job_of(database, job_id).expires_at)
    assert ends[0] == ends[1]
    assert ends[0] is not None
    assert 90 < (ends[0] - datetime.now(UTC)).total_seconds() < 110


# --- leases ---------------------------------------------------------------------------------------


def test_a_worker_in_good_standing_keeps_its_jobs(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    claim(database, enlist(database), **{batch_id: 2})
    assert rescue(database) == 0


def test_a_heartbeat_renews_a_lease_that_had_run_out(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 1})
    lose(database, worker_id)
    with database.write() as connection:
        leases.heartbeat(connection, worker_id, 60.0)
    assert rescue(database) == 0


@pytest.mark.parametrize("end", ["died", "retired", "known_dead"])
def test_the_jobs_of_a_worker_without_a_lease_are_queued_again_and_their_calls_unknown(
    database: Database, end: str
) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 2})
    if end == "died":
        lose(database, worker_id)
    with database.write() as connection:
        if end == "retired":
            leases.retire_worker(connection, worker_id)
        elif end == "known_dead":
            leases.end_leases(connection, [worker_id])
    assert _rescued_in_the_end(database) == 2
    for one in claimed:
        assert job_of(database, one.id).state is State.QUEUED
        (row,) = ledger(database, one.id)
        assert (row["state"], row["maybe_billed"]) == (AttemptState.UNKNOWN, True)
        assert row["error_code"] == "worker_lost"
    again = claim(database, enlist(database), **{batch_id: 2})
    assert [(one.fence, one.attempts) for one in again] == [(2, 2), (2, 2)]


def _rescued_in_the_end(database: Database) -> int:
    """A lease that ends now has run out by the clock's next tick, a millisecond on SQLite."""
    deadline = datetime.now(UTC) + timedelta(seconds=10)
    while not (found := rescue(database)) and datetime.now(UTC) < deadline:
        pass
    return found


def test_two_rescuers_at_once_take_each_job_over_once(database: Database) -> None:
    batch_id = submit_batch(database, 50)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 50})
    lose(database, worker_id)
    assert sum(all_at_once(*[lambda: rescue(database)] * 4)) + rescue(database) == 50


def test_a_job_whose_every_worker_died_fails_as_poison(database: Database) -> None:
    job_id = submit_single(database)
    for _ in range(3):
        assert job_of(database, job_id).state is State.QUEUED
        worker_id = enlist(database)
        claim_one(database, worker_id, job_id)
        lose(database, worker_id)
        assert rescue(database, max_attempts=3) == 1
    found = job_of(database, job_id)
    assert (found.state, found.error_code, found.attempts) == (State.FAILED, "poison", 3)
    assert found.finished_at is not None
    assert [row["state"] for row in ledger(database, job_id)] == [AttemptState.UNKNOWN] * 3


def test_a_batch_whose_last_job_is_poison_is_finished_by_the_rescue(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    good, _ = claim(database, worker_id, **{batch_id: 2})
    put(database, outcome_of(good))
    lose(database, worker_id)
    rescue(database, max_attempts=1)
    found = batch_of(database, batch_id)
    assert (found.state, found.succeeded, found.failed) == (BatchState.COMPLETED, 1, 1)
    assert found.finished_at is not None


def test_where_an_unknown_outcome_is_not_repeated_a_rescue_fails_the_jobs(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 2})
    lose(database, worker_id)
    assert rescue(database, unknown_outcome="fail") == 2
    _all_failed_as_unknown(database, batch_id, claimed)


def test_where_an_unknown_outcome_is_not_repeated_jobs_given_back_fail(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 2})
    keys = [(one.id, one.fence) for one in claimed]
    stale = [(job_id, fence + 1) for job_id, fence in keys]
    give_back(database, worker_id, stale, "fail")
    give_back(database, "another", keys[:1], "fail")
    assert batch_of(database, batch_id).failed == 0
    give_back(database, worker_id, keys, "fail")
    _all_failed_as_unknown(database, batch_id, claimed)


def _all_failed_as_unknown(database: Database, batch_id: str, claimed: list[Claimed]) -> None:
    for one in claimed:
        found = job_of(database, one.id)
        assert (found.state, found.error_code) == (State.FAILED, "outcome_unknown")
        assert [row["state"] for row in ledger(database, one.id)] == [AttemptState.UNKNOWN]
    ended = batch_of(database, batch_id)
    assert (ended.state, ended.failed) == (BatchState.COMPLETED, len(claimed))


def test_rescue_goes_on_where_its_limit_ended(database: Database) -> None:
    batch_id = submit_batch(database, 5)
    worker_id = enlist(database)
    claim(database, worker_id, **{batch_id: 5})
    lose(database, worker_id)
    assert [rescue(database, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_jobs_given_back_burn_no_attempt_and_their_calls_are_unknown(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 2})
    give_back(database, worker_id, [(one.id, one.fence) for one in claimed])
    for one in claimed:
        found = job_of(database, one.id)
        assert (found.state, found.attempts) == (State.QUEUED, 0)
        (row,) = ledger(database, one.id)
        assert (row["state"], row["error_code"]) == (AttemptState.UNKNOWN, "worker_stopped")
        assert row["maybe_billed"] is True
    assert [one.fence for one in claim(database, worker_id, **{batch_id: 2})] == [2, 2]


def test_a_worker_gives_back_only_what_it_still_holds(database: Database) -> None:
    slow, fast = enlist(database), enlist(database)
    job_id = submit_single(database)
    late = claim_one(database, slow, job_id)
    assert late is not None
    lose(database, slow)
    rescue(database)
    assert claim_one(database, fast, job_id) is not None
    give_back(database, slow, [(late.id, late.fence)])
    row = raw_job(database, job_id)
    assert (row["state"], row["worker_id"], row["attempts"]) == (State.RUNNING, fast, 2)


def test_giving_back_an_answered_job_changes_nothing(database: Database) -> None:
    worker_id = enlist(database)
    claimed = claim_one(database, worker_id, submit_single(database))
    assert claimed is not None
    put(database, outcome_of(claimed))
    give_back(database, worker_id, [(claimed.id, claimed.fence)])
    assert job_of(database, claimed.id).state is State.SUCCEEDED
    assert ledger(database, claimed.id)[0]["state"] == AttemptState.ANSWERED


def test_a_worker_learns_which_jobs_it_still_holds(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    worker_id = enlist(database)
    kept, cancelled, answered = claim(database, worker_id, **{batch_id: 3})
    cancel_job(database, cancelled.id)
    put(database, outcome_of(answered))
    with database.read() as connection:
        assert leases.still_held(connection, worker_id) == {kept.id: kept.fence}
