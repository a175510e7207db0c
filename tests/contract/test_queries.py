from tests.contract.acts import (
    ENDPOINT,
    answer,
    cancel_job,
    claim,
    claim_due,
    enlist,
    failure,
    fill_batch,
    job_ids,
    lose,
    outcome_of,
    put,
    put_off,
    rescue,
    run_again,
    submit_batch,
    submit_single,
)
from worker.jobs.outcomes import ToolCall
from worker.jobs.states import AttemptState, State
from worker.store import queries
from worker.store.engine import Database
from worker.store.queries import JobFilter


def test_what_is_not_there_is_none(database: Database) -> None:
    with database.read() as connection:
        assert queries.get_batch(connection, "batch_none") is None
        assert queries.get_job(connection, "job_none") is None
        assert queries.get_state(connection, "job_none") is None
        assert queries.list_attempts(connection, "job_none") == []


def test_batches_are_listed_newest_first_up_to_the_limit(database: Database) -> None:
    made = [submit_batch(database, 1) for _ in range(4)]
    with database.read() as connection:
        assert [one.id for one in queries.list_batches(connection, 3)] == made[:0:-1]


def test_jobs_are_listed_newest_first_by_batch_and_state(database: Database) -> None:
    batch_id, single = submit_batch(database, 3), submit_single(database)
    first, *_ = order = job_ids(database, batch_id)
    (claimed,) = claim(database, enlist(database), **{batch_id: 1})
    put(database, outcome_of(claimed))
    fill_batch(database, 2)

    def listed(which: JobFilter, limit: int = 10) -> list[str]:
        with database.read() as connection:
            return [one.id for one in queries.list_jobs(connection, which, limit)]

    assert listed(JobFilter()) == [single, *reversed(order)]
    assert listed(JobFilter(batch_id=batch_id), 2) == order[:0:-1]
    assert listed(JobFilter(state=State.SUCCEEDED)) == [first]
    assert listed(JobFilter(batch_id, State.RUNNING)) == []


def test_the_ledger_of_a_job_is_told_in_the_order_of_its_calls(database: Database) -> None:
    worker_id = enlist(database)
    batch_id = submit_batch(database, 1)
    (first,) = claim(database, worker_id, **{batch_id: 1})
    put_off(database, first, 0.0)
    (second,) = claim_due(database, worker_id)
    put(database, outcome_of(second))
    with database.read() as connection:
        calls = queries.list_attempts(connection, first.id)
    assert [(one.number, one.state, one.status) for one in calls] == [
        (1, AttemptState.ANSWERED, 500),
        (2, AttemptState.ANSWERED, 200),
    ]
    assert {one.endpoint for one in calls} == {ENDPOINT}


def test_pages_of_a_batch_bring_each_job_once_with_its_tool_calls(database: Database) -> None:
    batch_id = submit_batch(database, 5)
    claimed = claim(database, enlist(database), **{batch_id: 5})
    call = ToolCall(0, "call_1", "look", "{}", arguments_valid=True)
    put(database, *(outcome_of(one, answer(tool_calls=(call,))) for one in claimed))
    seen, last = [], ""
    with database.read() as connection:
        while page := queries.page_of_jobs(connection, batch_id, last, size=2):
            seen += page
            last = page[-1].id
    assert [one.id for one in seen] == job_ids(database, batch_id)
    assert {one.tool_calls for one in seen} == {(call,)}


def test_jobs_are_counted_by_state_of_one_batch_and_of_all(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    submit_single(database)
    claim(database, enlist(database), **{batch_id: 1})
    cancel_job(database, job_ids(database, batch_id)[2])
    with database.read() as connection:
        assert queries.count_states(connection, batch_id) == {
            State.QUEUED: 1, State.RUNNING: 1, State.CANCELLED: 1,
        }  # fmt: skip
        assert queries.count_states(connection)[State.QUEUED] == 2


def test_calls_of_unknown_outcome_are_counted_until_their_answer_comes(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **{batch_id: 2})
    lose(database, worker_id)
    rescue(database)

    def unknown(which: str | None = None) -> int:
        with database.read() as connection:
            return queries.count_unknown(connection, which)

    assert (unknown(), unknown(batch_id), unknown("batch_other")) == (2, 2, 0)
    put(database, outcome_of(claimed[0]))
    assert unknown(batch_id) == 1


def test_failures_are_grouped_by_their_error_the_most_frequent_first(database: Database) -> None:
    batch_id = submit_batch(database, 5)
    claimed = claim(database, enlist(database), **{batch_id: 5})
    rare = failure(code="rare", message="once")
    common = failure(code="common", message="often")
    put(database, outcome_of(claimed[0], rare), *(outcome_of(c, common) for c in claimed[1:3]))
    put_off(database, claimed[3], 60)
    put(database, outcome_of(claimed[4]))
    with database.read() as connection:
        groups = queries.failure_groups(connection, batch_id)
    assert (groups[0].code, groups[0].count, groups[0].message) == ("common", 2, "often")
    assert {(one.state, one.code) for one in groups} == {
        (State.FAILED, "common"), (State.FAILED, "rare"), (State.WAITING, "server_error"),
    }  # fmt: skip


def test_a_batch_is_reported_by_one_worker_at_a_time_and_first_once(database: Database) -> None:
    def taken(every_seconds: float, after_end_seconds: float = 0.0) -> list[tuple[str, bool]]:
        with database.write() as connection:
            reports = queries.take_reports(connection, every_seconds, after_end_seconds)
        return [(one.batch.id, one.is_first) for one in reports]

    batch_id = submit_batch(database, 1)
    fill_batch(database, 1)
    assert taken(60.0) == [(batch_id, True)]
    assert taken(60.0) == []
    assert taken(-1.0) == [(batch_id, False)]
    (claimed,) = claim(database, enlist(database), **{batch_id: 1})
    put(database, outcome_of(claimed, failure()))
    assert taken(-1.0, 60.0) == [(batch_id, False)], "its end is told"
    assert taken(-1.0, 60.0) == [(batch_id, False)], "and told again, for a while"
    assert taken(-1.0, -60.0) == [], "and then no more"
    run_again(database, batch_id)
    assert taken(60.0) == [(batch_id, True)]
