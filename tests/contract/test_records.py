import traceback
from typing import Any

import pytest

from tests.contract.acts import (
    USAGE,
    all_at_once,
    answer,
    assert_counters_match_rows,
    batch_of,
    cancel_batch,
    cancel_job,
    claim,
    claim_due,
    claim_one,
    count,
    enlist,
    failure,
    job_ids,
    job_of,
    ledger,
    lose,
    outcome_of,
    put,
    put_off,
    raw_job,
    rescue,
    run_again,
    submit_batch,
    submit_single,
    tokens_of,
)
from worker.jobs.outcomes import ErrorClass, ToolCall, Usage
from worker.jobs.states import AttemptState, BatchState, State
from worker.store import records
from worker.store.claims import Claimed
from worker.store.engine import Database, RefusedError

ODD = "é 漢字 🙂 \u2028 \u202e \x01 \x7f ' \" \\ % :name ; -- \r\n\t"


@pytest.fixture
def claimed(database: Database) -> Claimed:
    """A single job, claimed."""
    found = claim_one(database, enlist(database), submit_single(database))
    assert found is not None
    return found


def test_an_answer_is_kept_with_everything_that_is_known_of_it(
    database: Database, claimed: Claimed
) -> None:
    told = answer(
        content=ODD, reasoning_content="because", refusal="no", finish_reason="length",
        request_id="req-1", first_token_seconds=0.1, status=200, body='{"x": 1}',
    )  # fmt: skip
    recorded = put(database, outcome_of(claimed, told))
    assert recorded.job_ids == {claimed.id}
    found = job_of(database, claimed.id)
    assert found.state is State.SUCCEEDED
    for name in ("content", "reasoning_content", "refusal", "finish_reason", "request_id"):
        assert getattr(found, name) == getattr(told, name)
    assert (found.response, found.status, found.error_code) == ('{"x": 1}', 200, None)
    assert found.total_tokens == USAGE.total_tokens
    assert found.finished_at is not None
    (row,) = ledger(database, claimed.id)
    assert (row["state"], row["seconds"], row["first_token_seconds"]) == ("answered", 0.25, 0.1)
    assert (row["prompt_tokens"], row["maybe_billed"]) == (USAGE.prompt_tokens, False)


def test_a_failure_is_kept_with_what_the_upstream_sent(
    database: Database, claimed: Claimed
) -> None:
    bad = failure(
        error_class=ErrorClass.PERMANENT, code="bad_request", message="m" * 9_000, status=400,
        body='{"error": {}}', partial="half a sen", maybe_billed=True,
    )  # fmt: skip
    put(database, outcome_of(claimed, bad))
    found = job_of(database, claimed.id)
    assert (found.state, found.error_class, found.error_code) == (
        State.FAILED, "permanent", "bad_request",
    )  # fmt: skip
    assert found.error_message == "m" * records.MESSAGE_LIMIT
    assert (found.status, found.response, found.content) == (400, '{"error": {}}', "half a sen")
    assert ledger(database, claimed.id)[0]["maybe_billed"] is True


def test_a_job_that_waits_keeps_its_error_and_its_number_of_diversions(
    database: Database, claimed: Claimed
) -> None:
    put_off(database, claimed, 3600.0, diverts=2)
    row = raw_job(database, claimed.id)
    assert (row["state"], row["worker_id"], row["diverts"]) == (State.WAITING, None, 2)
    assert (row["error_code"], row["finished_at"]) == ("server_error", None)
    assert row["attempts"] == 1


def test_a_snooze_burns_no_attempt(database: Database, claimed: Claimed) -> None:
    put_off(database, claimed, 0.0, burns_attempt=False)
    assert job_of(database, claimed.id).attempts == 0
    (again,) = claim_due(database, enlist(database))
    assert (again.attempts, again.fence) == (1, 2)


def test_a_stale_worker_cannot_record_over_a_newer_claim(
    database: Database, claimed: Claimed
) -> None:
    lose(database, raw_job(database, claimed.id)["worker_id"])
    rescue(database)
    newer = claim_one(database, enlist(database), claimed.id)
    assert newer is not None
    before = raw_job(database, claimed.id)
    late = put(database, outcome_of(claimed, answer(content="late", request_id="req-late")))
    assert late.job_ids == frozenset()
    assert raw_job(database, claimed.id) == before
    old, new = ledger(database, claimed.id)
    assert (old["state"], old["request_id"]) == (AttemptState.ANSWERED, "req-late")
    assert old["total_tokens"] == USAGE.total_tokens
    assert new["state"] == AttemptState.PREPARED
    assert put(database, outcome_of(newer)).job_ids == {claimed.id}


@pytest.mark.parametrize("what", ["cancelled", "rescued"])
def test_a_late_answer_of_a_batch_touches_neither_the_job_nor_the_counters(
    database: Database, what: str
) -> None:
    batch_id = submit_batch(database, 1)
    worker_id = enlist(database)
    (late,) = claim(database, worker_id, **{batch_id: 1})
    if what == "cancelled":
        cancel_job(database, late.id)
    else:
        lose(database, worker_id)
        rescue(database)
    row, found = raw_job(database, late.id), batch_of(database, batch_id)
    recorded = put(database, outcome_of(late, answer(tool_calls=(_call(0),))))
    assert (recorded.job_ids, recorded.finished_batches) == (frozenset(), ())
    assert (raw_job(database, late.id), batch_of(database, batch_id)) == (row, found)
    assert count(database, "tool_call") == 0
    assert ledger(database, late.id)[0]["total_tokens"] == USAGE.total_tokens


def test_an_outcome_is_recorded_once_however_often_it_is_told(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    one, _ = claim(database, enlist(database), **{batch_id: 2})
    told = [put(database, outcome_of(one)).job_ids for _ in range(3)]
    assert told == [{one.id}, frozenset(), frozenset()]
    assert batch_of(database, batch_id).succeeded == 1


def test_fresh_and_stale_records_of_one_group_are_told_apart(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    slow, fast = enlist(database), enlist(database)
    stale, fresh = claim(database, slow, **{batch_id: 2})
    lose(database, slow)
    rescue(database)
    again = claim(database, fast, **{batch_id: 2})
    recorded = put(database, outcome_of(stale), outcome_of(again[0]), outcome_of(fresh))
    assert recorded.job_ids == {again[0].id}
    assert_counters_match_rows(database, batch_id)


# --- counters -------------------------------------------------------------------------------------


def test_counters_and_tokens_are_exact_over_answers_failures_and_retried_calls(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 4)
    worker_id = enlist(database)
    good, bad, retried, silent = claim(database, worker_id, **{batch_id: 4})
    put(
        database,
        outcome_of(good),
        outcome_of(bad, failure()),
        outcome_of(retried, failure(usage=Usage(prompt_tokens=100)), State.WAITING),
        outcome_of(silent, answer(usage=None)),
    )
    found = batch_of(database, batch_id)
    assert (found.succeeded, found.failed, found.state) == (2, 1, BatchState.IN_PROGRESS)
    (again,) = claim_due(database, worker_id)
    assert put(database, outcome_of(again)).finished_batches == (batch_id,)
    found = batch_of(database, batch_id)
    assert (found.succeeded, found.failed, found.state) == (3, 1, BatchState.COMPLETED)
    assert tokens_of(found) == {
        "prompt_tokens": 2 * USAGE.prompt_tokens + 100,
        "cached_tokens": 2 * USAGE.cached_tokens,
        "completion_tokens": 2 * USAGE.completion_tokens,
        "reasoning_tokens": 2 * USAGE.reasoning_tokens,
    }
    assert_counters_match_rows(database, batch_id)


def test_a_batch_is_finished_exactly_once_under_concurrent_records(database: Database) -> None:
    batches = [submit_batch(database, 40) for _ in range(3)]
    worker_id = enlist(database)
    claimed = claim(database, worker_id, **dict.fromkeys(batches, 40))
    claimed.sort(key=lambda one: one.id[-4:])  # each group holds some of every batch
    groups = [claimed[n::8] for n in range(8)]

    def tell(group: list[Claimed]) -> tuple[str, ...]:
        done: tuple[str, ...] = ()
        for start in range(0, len(group), 5):
            outcomes = [outcome_of(one) for one in group[start : start + 5]]
            done += put(database, *outcomes).finished_batches
        return done

    told = all_at_once(*(lambda group=one: tell(group) for one in groups))
    assert sorted(batch_id for done in told for batch_id in done) == sorted(batches)
    for batch_id in batches:
        found = batch_of(database, batch_id)
        assert (found.state, found.succeeded) == (BatchState.COMPLETED, 40)
        assert found.prompt_tokens == 40 * USAGE.prompt_tokens
        assert_counters_match_rows(database, batch_id)


def test_answers_and_a_cancellation_at_once_leave_every_job_counted_once(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 60)
    claimed = claim(database, enlist(database), **{batch_id: 40})

    def tell(group: list[Claimed]) -> int:
        return len(put(database, *(outcome_of(one) for one in group)).job_ids)

    acts = [lambda group=claimed[n::3]: tell(group) for n in range(3)]
    *told, ended = all_at_once(*acts, lambda: cancel_batch(database, batch_id))
    assert sum(told) + ended == 60
    found = batch_of(database, batch_id)
    assert (found.succeeded, found.cancelled) == (sum(told), ended)
    assert found.state is BatchState.CANCELLED
    assert_counters_match_rows(database, batch_id)


# --- contents -------------------------------------------------------------------------------------


def _call(index: int, **fields: Any) -> ToolCall:
    values = {"call_id": f"call_{index}", "name": "look", "arguments": '{"a": 1}'}
    return ToolCall(index=index, arguments_valid=True, **values | fields)


def test_tool_calls_are_kept_as_sent_in_the_order_of_their_index(
    database: Database, claimed: Claimed
) -> None:
    calls = (_call(1, arguments='{"cut'), _call(0), _call(2, name=ODD, arguments=""))
    put(database, outcome_of(claimed, answer(tool_calls=calls)))
    assert job_of(database, claimed.id).tool_calls == (calls[1], calls[0], calls[2])


def test_a_huge_answer_comes_back_as_it_was(database: Database, claimed: Claimed) -> None:
    huge = "漢🙂x" * 1_000_000
    put(database, outcome_of(claimed, answer(content=huge, body=f'"{huge}"')))
    found = job_of(database, claimed.id)
    assert found.content == huge
    assert found.response == f'"{huge}"'


@pytest.mark.parametrize(
    "fields",
    [{"content": "\ud83d"}, {"usage": Usage(prompt_tokens=1 << 70)}],
    ids=["half a pair", "a number beyond 64 bits"],
)
def test_contents_that_no_column_can_hold_are_refused_without_quoting_them(
    database: Database, claimed: Claimed, fields: dict[str, Any]
) -> None:
    with pytest.raises(RefusedError) as refusal:
        put(database, outcome_of(claimed, answer(**fields)))
    assert "pair" not in str(refusal.value)
    assert len(str(refusal.value)) < 60
    assert job_of(database, claimed.id).state is State.RUNNING


def test_not_even_the_cause_of_a_refusal_quotes_the_contents(
    database: Database, claimed: Claimed
) -> None:
    secret = "confi" + "dential"  # a traceback quotes our own line, too
    with pytest.raises(RefusedError) as refusal:
        put(database, outcome_of(claimed, answer(content=secret, refusal="\ud83d")))
    assert secret not in "".join(traceback.format_exception(refusal.value))


def test_a_nul_is_refused_or_kept_but_never_cuts_a_text(
    database: Database, claimed: Claimed
) -> None:
    try:
        put(database, outcome_of(claimed, answer(content="before\0after")))
    except RefusedError:
        assert not database.is_sqlite
        assert job_of(database, claimed.id).state is State.RUNNING
    else:
        assert job_of(database, claimed.id).content == "before\0after"


def test_one_refused_record_takes_its_whole_group_back(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    good, bad = claim(database, enlist(database), **{batch_id: 2})
    with pytest.raises(RefusedError):
        put(database, outcome_of(good), outcome_of(bad, answer(content="\udc00")))
    assert job_of(database, good.id).state is State.RUNNING
    assert batch_of(database, batch_id).succeeded == 0


def test_calls_seen_in_flight_are_noted_as_sent_and_answers_are_not_undone(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    flying, answered = claim(database, enlist(database), **{batch_id: 2})
    put(database, outcome_of(answered))
    with database.write() as connection:
        records.mark_sent(connection, [(one.id, one.fence) for one in (flying, answered)])
    assert ledger(database, flying.id)[0]["state"] == AttemptState.SENT
    assert ledger(database, answered.id)[0]["state"] == AttemptState.ANSWERED


# --- cancelling -----------------------------------------------------------------------------------


def test_cancelling_a_batch_ends_what_is_open_and_keeps_what_is_done(database: Database) -> None:
    batch_id = submit_batch(database, 4)
    worker_id = enlist(database)
    done, waits, _runs = claim(database, worker_id, **{batch_id: 3})
    put(database, outcome_of(done))
    put_off(database, waits, 3600.0)
    assert cancel_batch(database, batch_id) == 3
    found = batch_of(database, batch_id)
    assert (found.state, found.succeeded, found.cancelled) == (BatchState.CANCELLED, 1, 3)
    assert found.finished_at is not None
    assert cancel_batch(database, batch_id) == 0
    assert batch_of(database, batch_id) == found
    assert_counters_match_rows(database, batch_id)


def test_cancelling_one_job_leaves_its_batch_in_progress(database: Database) -> None:
    batch_id = submit_batch(database, 2)
    first, second = job_ids(database, batch_id)
    assert cancel_job(database, first) == 1
    assert batch_of(database, batch_id).state is BatchState.IN_PROGRESS
    assert cancel_job(database, second) == 1
    assert batch_of(database, batch_id).state is BatchState.COMPLETED
    assert_counters_match_rows(database, batch_id)


def test_a_finished_job_cannot_be_cancelled(database: Database, claimed: Claimed) -> None:
    put(database, outcome_of(claimed))
    assert cancel_job(database, claimed.id) == 0
    assert job_of(database, claimed.id).state is State.SUCCEEDED


def test_a_single_job_can_be_cancelled_while_it_runs(database: Database, claimed: Claimed) -> None:
    assert cancel_job(database, claimed.id) == 1
    row = raw_job(database, claimed.id)
    assert (row["state"], row["worker_id"]) == (State.CANCELLED, None)


# --- retrying -------------------------------------------------------------------------------------


def _batch_with_failures(database: Database) -> tuple[str, list[Claimed]]:
    batch_id = submit_batch(database, 3)
    good, *bad = claim(database, enlist(database), **{batch_id: 3})
    wrong = failure(status=400, body="{}", partial="half", usage=USAGE, request_id="r")
    put(database, outcome_of(good), *(outcome_of(one, wrong) for one in bad))
    return batch_id, bad


def test_failed_jobs_run_again_with_a_fresh_count_and_an_unbroken_ledger(
    database: Database,
) -> None:
    batch_id, bad = _batch_with_failures(database)
    assert run_again(database, batch_id) == 2
    found = batch_of(database, batch_id)
    assert (found.state, found.failed, found.finished_at) == (BatchState.IN_PROGRESS, 0, None)
    assert raw_job(database, bad[0].id)["started_at"] is None
    again = claim(database, enlist(database), **{batch_id: 5})
    assert [(one.id, one.attempts, one.fence) for one in again] == [(one.id, 1, 2) for one in bad]
    put(database, *(outcome_of(one) for one in again))
    assert batch_of(database, batch_id).state is BatchState.COMPLETED
    assert [len(ledger(database, one.id)) for one in bad] == [2, 2]
    assert_counters_match_rows(database, batch_id)


def test_a_job_that_runs_again_shows_nothing_of_its_failure(database: Database) -> None:
    batch_id, bad = _batch_with_failures(database)
    run_again(database, batch_id)
    row = raw_job(database, bad[0].id)
    for name in ("status", "request_id", "content", "response", "error_code", "total_tokens"):
        assert row[name] is None, name


def test_a_batch_without_failures_is_left_as_it_is(database: Database) -> None:
    batch_id = submit_batch(database, 1)
    (one,) = claim(database, enlist(database), **{batch_id: 1})
    put(database, outcome_of(one))
    before = batch_of(database, batch_id)
    assert run_again(database, batch_id) == 0
    assert batch_of(database, batch_id) == before


def test_two_retries_at_once_count_each_failure_once(database: Database) -> None:
    batch_id, _ = _batch_with_failures(database)
    assert sum(all_at_once(*[lambda: run_again(database, batch_id)] * 4)) == 2
    assert_counters_match_rows(database, batch_id)
