"""A verdict that cannot fail is worth nothing: each breach is found in evidence that has it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from worker.prove.plan import INTERACTIVE_SLOTS, SLOTS
from worker.prove.staff import Fate, Posting, Spell
from worker.prove.verdict import THAW_SECONDS, Answered, Evidence, Handed, Lost, judge
from worker.store.scratch import AttemptRow, BatchRow, Books, Change, JobRow, WorkerRow


def job(ident: str, batch: str | None = "batch_1", state: str = "succeeded") -> JobRow:
    return JobRow(ident, batch, f"custom-{ident}", state, f"req_{ident}", None)


def attempt(ident: str, fence: int = 1, **changes: Any) -> AttemptRow:
    good = AttemptRow(ident, fence, "answered", "worker_1", 200, f"req_{ident}", None, False, 9)  # noqa: FBT003  # a row
    return replace(good, **changes)


def lost(ident: str, fence: int = 1, worker: str = "worker_1") -> AttemptRow:
    return attempt(
        ident,
        fence,
        state="unknown",
        worker_id=worker,
        status=None,
        request_id=None,
        error_code="worker_lost",
        maybe_billed=True,
        total_tokens=None,
    )


def call(ident: str, number: int, *, outcome: str = "ok", billed: bool = True) -> Answered:
    return Answered(number, ident, f"req_{ident}", outcome, billed)


def end(ident: str, after: str = "succeeded") -> Change:
    return Change(ident, "running", after)


def evidence(fates: Mapping[str, set[Fate]] | None = None, **changes: Any) -> Evidence:
    """Two jobs of a batch and a single one that ended well; some of it changed."""
    jobs = (job("a"), job("b"), job("c", None))
    books = Books(
        jobs,
        (BatchRow("batch_1", "completed", 2, 2, 0, 0, 0),),
        tuple(attempt(one.id) for one in jobs),
        (WorkerRow("worker_1", "w1", 11), WorkerRow("worker_2", "w2", 12)),
        tuple(end(one.id) for one in jobs),
    )
    found = Evidence(
        books=replace(
            books, **{k: v for k, v in changes.items() if k in Books.__dataclass_fields__}
        ),
        calls=tuple(call(one.id, number) for number, one in enumerate(jobs, 1)),
        postings=tuple(
            Posting(one.name, one.pid, _spells((fates or {}).get(one.id, set())))
            for one in books.workers
        ),
        losses=tuple(
            Lost(5.0, one.job_id, one.fence, one.worker_id, one.error_code)
            for one in changes.get("attempts", ())
            if one.state == "unknown"
        ),
        batches=(Handed("batch_1", ("1", "2"), ("1", "2")),),
        singles=("c",),
        unknown_outcomes=0,
        unfinished={},
    )
    ours = {
        k: v for k, v in changes.items() if k in Evidence.__dataclass_fields__ and k != "batches"
    }
    return replace(found, **ours)


def _spells(fates: set[Fate]) -> list[Spell]:
    return [Spell(fate, 4.0, 6.0 if fate is Fate.FROZEN else None) for fate in fates]


def breaches(found: Evidence) -> dict[str, tuple[str, ...]]:
    return {line.name: line.breaches for line in judge(found).lines if line.breaches}


def values(found: Evidence) -> dict[str, int]:
    return {line.name: line.value for line in judge(found).lines}


def test_work_that_went_well_breaks_no_promise() -> None:
    assert judge(evidence()).holds
    assert breaches(evidence()) == {}
    assert values(evidence())["calls"] == 3


def test_a_job_that_is_gone_is_lost() -> None:
    found = evidence(jobs=(job("a"), job("b")))
    assert breaches(found)["lost"] == ("c: gone",)
    assert values(found)["lost"] == 1


@pytest.mark.parametrize("state", ["queued", "running", "waiting"])
def test_a_job_in_no_final_state_is_lost(state: str) -> None:
    found = evidence(jobs=(job("a"), job("b", state=state), job("c", None)))
    assert breaches(found)["lost"] == ("batch_1: 1 of 2 did not end",)


def test_work_that_does_not_end_in_time_breaks_a_promise() -> None:
    assert breaches(evidence(unfinished={"waiting": 2})) == {
        "lost": ("the work did not end in time: 2 waiting",)
    }


@pytest.mark.parametrize("state", ["failed", "expired", "cancelled"])
def test_a_job_that_trouble_has_ended_breaks_a_promise(state: str) -> None:
    assert breaches(evidence(jobs=(job("a"), job("b"), job("c", None, state))))["jobs"] == (
        f"c is {state}: None",
    )


def test_a_cancelled_batch_may_have_cancelled_jobs() -> None:
    found = evidence(
        jobs=(job("a"), job("b", state="cancelled"), job("c", None)),
        changes=(end("a"), end("b", "cancelled"), end("c")),
    )
    books = replace(found.books, batches=(BatchRow("batch_1", "cancelled", 2, 1, 0, 1, 0),))
    cancelled = replace(found.batches[0], was_cancelled=True)
    assert judge(replace(found, books=books, batches=(cancelled,))).holds
    assert not judge(replace(found, books=books)).holds


def test_a_job_that_ended_twice_was_recorded_twice() -> None:
    found = evidence(changes=(end("a"), end("b"), end("b"), end("c")))
    assert breaches(found) == {"recorded twice": ("b ended 2 times",)}
    assert values(found)["recorded twice"] == 1


def test_a_job_that_was_changed_after_its_end_was_recorded_twice() -> None:
    again = Change("b", "succeeded", "succeeded")
    found = evidence(changes=(end("a"), end("b"), end("c"), again))
    assert breaches(found) == {"recorded twice": ("b went from succeeded to succeeded",)}


def test_an_end_that_the_trigger_did_not_see_is_told() -> None:
    assert breaches(evidence(changes=(end("a"), end("b"))))["recorded twice"] == (
        "c is succeeded, and the trigger saw no end",
    )


@pytest.mark.parametrize(
    "batch",
    [
        BatchRow("batch_1", "completed", 2, 1, 1, 0, 0),
        BatchRow("batch_1", "completed", 3, 2, 0, 0, 0),
        BatchRow("batch_1", "in_progress", 2, 2, 0, 0, 0),
    ],
)
def test_counters_that_are_no_count_break_a_promise(batch: BatchRow) -> None:
    found = evidence()
    found = replace(found, books=replace(found.books, batches=(batch,)))
    assert "counters wrong" in breaches(found)


@pytest.mark.parametrize("exported", [("1",), ("1", "2", "2"), ("1", "3"), ()])
def test_results_must_have_every_line_once(exported: tuple[str, ...]) -> None:
    found = evidence()
    found = replace(found, batches=(replace(found.batches[0], exported=exported),))
    assert list(breaches(found)) == ["results missing or doubled"]


def test_a_call_that_is_not_in_the_ledger_is_told() -> None:
    found = evidence(calls=(*evidence().calls, call("a", 4, outcome="429", billed=False)))
    assert breaches(found) == {"calls": ("a: 2 calls, 1 in the ledger",)}


def test_a_second_answer_that_nothing_explains_breaks_a_promise() -> None:
    refused = attempt("a", 1, status=429, error_code="rate_limit_exceeded", total_tokens=None)
    found = evidence(
        attempts=(refused, attempt("a", 2), attempt("b"), attempt("c")),
        calls=(*evidence().calls, call("a", 4)),
    )
    assert list(breaches(found)) == ["calls made twice"]


@pytest.mark.parametrize(
    ("mark", "cause"),
    [
        (lost("a"), "worker killed"),
        (attempt("a", error_code="stream_cut", maybe_billed=True), "stream_cut"),
        (attempt("a", error_code="schema_mismatch"), "schema_mismatch"),
    ],
)
def test_a_second_answer_is_explained_by_a_mark_in_the_ledger(mark: AttemptRow, cause: str) -> None:
    found = evidence(
        {"worker_1": {Fate.KILLED}},
        attempts=(mark, attempt("a", 2), attempt("b"), attempt("c")),
        calls=(*evidence().calls, call("a", 4)),
        unknown_outcomes=int(mark.maybe_billed),
    )
    assert judge(found).holds
    line = next(one for one in judge(found).lines if one.name == "calls made twice")
    assert (line.value, line.note) == (1, f"1 {cause}")


def test_one_mark_explains_one_answer_only() -> None:
    found = evidence(
        {"worker_1": {Fate.KILLED}},
        attempts=(lost("a"), attempt("a", 2), attempt("a", 3, error_code="x", total_tokens=None),
                  attempt("b"), attempt("c")),
        calls=(*evidence().calls, call("a", 4), call("a", 5)),
        unknown_outcomes=1,
    )  # fmt: skip
    assert list(breaches(found)) == ["calls made twice"]


def test_an_answer_to_a_cancelled_job_must_be_on_the_books_too() -> None:
    refused = attempt("c", error_code="rate_limit_exceeded", total_tokens=None)
    found = evidence(attempts=(attempt("a"), attempt("b"), refused))
    assert breaches(found) == {
        "calls made twice": ("c: 1 answers were made, the ledger explains fewer",)
    }


@pytest.mark.parametrize("was_lost", [True, False])
def test_a_job_may_be_answered_twice_only_where_one_was_given_up(was_lost: bool) -> None:
    found = evidence(
        {"worker_1": {Fate.FROZEN}},
        attempts=(attempt("a"), attempt("a", 2, worker_id="worker_2"), attempt("b"), attempt("c")),
        calls=(*evidence().calls, call("a", 4)),
        losses=(Lost(5.0, "a", 1, "worker_1", "worker_lost"),) if was_lost else (),
    )
    assert judge(found).holds == was_lost
    assert values(found)["calls made twice"] == 1


def test_a_call_taken_from_a_worker_that_was_well_breaks_a_promise() -> None:
    found = evidence(
        attempts=(lost("a"), attempt("a", 2), attempt("b"), attempt("c")), unknown_outcomes=1
    )
    assert list(breaches(found)) == ["calls taken from workers that were well"]


@pytest.mark.parametrize(
    ("fate", "at", "holds"),
    [
        (Fate.KILLED, 3.9, False),
        (Fate.KILLED, 60.0, True),
        (Fate.FROZEN, 3.9, False),
        (Fate.FROZEN, 6.0 + THAW_SECONDS, True),
        (Fate.FROZEN, 6.1 + THAW_SECONDS, False),
    ],
)
def test_a_worker_counts_as_well_before_and_after_its_trouble(
    fate: Fate, at: float, holds: bool
) -> None:
    found = evidence(
        {"worker_1": {fate}},
        attempts=(lost("a"), attempt("a", 2), attempt("b"), attempt("c")),
        losses=(Lost(at, "a", 1, "worker_1", "worker_lost"),),
        unknown_outcomes=1,
    )
    assert judge(found).holds == holds


def test_a_dead_worker_cannot_have_lost_more_calls_than_it_had_slots() -> None:
    slots = SLOTS + INTERACTIVE_SLOTS
    marks = tuple(lost("a", fence) for fence in range(1, slots + 2))
    rest = (attempt("a", slots + 2), attempt("b"), attempt("c"))
    found = evidence(
        {"worker_1": {Fate.KILLED}}, attempts=(*marks, *rest), unknown_outcomes=slots + 1
    )
    assert list(breaches(found)) == ["calls taken from workers that were well"]
    fewer = evidence(
        {"worker_1": {Fate.KILLED}}, attempts=(*marks[1:], *rest), unknown_outcomes=slots
    )
    assert judge(fewer).holds


def test_unknown_outcomes_must_be_told_as_they_are() -> None:
    dead = {"worker_1": {Fate.KILLED}}
    attempts = (lost("a"), attempt("a", 2), attempt("b"), attempt("c"))
    assert breaches(evidence(dead, attempts=attempts)) == {
        "unknown outcomes": ("0 are told, 1 are in the ledger",)
    }
    cut = attempt("a", error_code="stream_cut", maybe_billed=True)
    assert list(breaches(evidence(attempts=(cut, *attempts[1:])))) == ["unknown outcomes"]
    unmarked = (replace(attempts[0], maybe_billed=False), *attempts[1:])
    found = evidence(dead, attempts=unmarked)
    assert breaches(found) == {"unknown outcomes": ("a, call 1: not marked",)}


@pytest.mark.parametrize("state", ["prepared", "sent"])
def test_a_call_that_stays_open_in_the_ledger_breaks_a_promise(state: str) -> None:
    left = attempt("a", state=state, status=None, request_id=None, total_tokens=None)
    found = evidence(attempts=(left, attempt("a", 2), attempt("b"), attempt("c")))
    assert list(breaches(found)) == ["calls left open in the ledger"]


def test_an_answer_of_another_job_is_told() -> None:
    jobs = (replace(job("a"), request_id="req_b"), job("b"), job("c", None))
    assert breaches(evidence(jobs=jobs)) == {
        "answers of another job": ("a has the answer of req_b",)
    }


@pytest.mark.parametrize("fate", [Fate.DIED, Fate.STUCK])
def test_a_worker_that_dies_or_hangs_breaks_a_promise(fate: Fate) -> None:
    assert list(breaches(evidence({"worker_2": {fate}}))) == ["workers that died or hung"]


def test_of_many_breaches_a_few_are_shown() -> None:
    many = tuple(job(f"j{number}", None, "failed") for number in range(9))
    shown = breaches(evidence(jobs=(*evidence().books.jobs, *many)))["jobs"]
    assert len(shown) == 6
    assert shown[-1] == "and 4 more"
