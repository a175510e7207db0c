"""The store against a plain model of its books: after every act both must say exactly the same.

The acts come in any order, from several workers, in time, late and twice. The model is the rules of
ARCHITECTURE.md in dictionaries, and nothing of the store is used to predict what the store does.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, update

from tests.conftest import empty
from tests.contract.acts import (
    answer,
    cancel_batch,
    cancel_job,
    claim,
    claim_one,
    enlist,
    failure,
    job_ids,
    ledger,
    lose,
    outcome_of,
    put,
    raw_job,
    rescue,
    run_again,
    submit_batch,
)
from worker.jobs.outcomes import Usage
from worker.jobs.states import AttemptState, BatchState, State
from worker.models import attempt, batch, job
from worker.store import leases, lost, queries, records
from worker.store.claims import Claimed
from worker.store.engine import Database
from worker.store.lost import forget_calls

MAX_ATTEMPTS = 3
EXAMPLES = 40 if settings.get_current_profile_name() == "repeatable" else 500

OPEN = ("prepared", "sent")
COUNTED = ("succeeded", "failed", "cancelled", "expired")


@dataclass
class Job:
    """What is known of a job."""

    batch_id: str
    state: str = "queued"
    fence: int = 0
    attempts: int = 0
    worker: str | None = None
    is_due: bool = False


@dataclass
class Batch:
    """What is known of a batch."""

    total: int
    state: str = "in_progress"
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Call:
    """One line of the ledger."""

    worker: str
    state: str = "prepared"
    maybe_billed: bool = False
    tokens: int | None = None


class Books:
    """The model: what each act must do."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.batches: dict[str, Batch] = {}
        self.ledger: dict[tuple[str, int], Call] = {}

    def claimable(self, batch_id: str) -> tuple[set[str], list[str]]:
        """The jobs of a batch that waited and are due, and those that never waited, in order."""
        if self.batches[batch_id].state != "in_progress":
            return set(), []
        ours = {id_: one for id_, one in sorted(self.jobs.items()) if one.batch_id == batch_id}
        due = {id_ for id_, one in ours.items() if one.state == "waiting" and one.is_due}
        return due, [id_ for id_, one in ours.items() if one.state == "queued"]

    def claim(self, worker: str, job_id: str) -> int:
        one = self.jobs[job_id]
        one.state, one.worker = "running", worker
        one.fence += 1
        one.attempts += 1
        self.ledger[job_id, one.fence] = Call(worker)
        return one.fence

    def holds(self, job_id: str, fence: int) -> bool:
        one = self.jobs[job_id]
        return one.state == "running" and one.fence == fence

    def answer(self, key: tuple[str, int], tokens: int | None, *, billed: bool) -> None:
        call = self.ledger[key]
        call.state, call.tokens, call.maybe_billed = "answered", tokens, billed

    def forget(self, key: tuple[str, int]) -> None:
        call = self.ledger[key]
        if call.state in OPEN:
            call.state, call.maybe_billed = "unknown", True

    def end(self, job_id: str, state: str) -> None:
        one = self.jobs[job_id]
        one.state, one.worker = state, None
        self.batches[one.batch_id].counts[state] += 1
        self.close(one.batch_id)

    def close(self, batch_id: str) -> None:
        of = self.batches[batch_id]
        if sum(of.counts.values()) == of.total:
            of.state = "cancelled" if of.state in {"cancelling", "cancelled"} else "completed"

    def queue(self, job_id: str) -> None:
        self.jobs[job_id].state, self.jobs[job_id].worker = "queued", None


class Library(RuleBasedStateMachine):
    """Two batches, workers that come and die, answers in time, late and in any company."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.workers: list[str] = []
        self.calls: list[tuple[str, Claimed]] = []
        self.fences: Counter[str] = Counter()

    @initialize()
    def begin(self) -> None:
        empty(self.database)  # of the example before
        for size in (4, 2):
            batch_id = submit_batch(self.database, size)
            self.books.batches[batch_id] = Batch(size)
            for job_id in job_ids(self.database, batch_id):
                self.books.jobs[job_id] = Job(batch_id)
        self.workers = [enlist(self.database), enlist(self.database)]

    # --- claiming ---------------------------------------------------------------------------------

    @rule(data=st.data(), limit=st.integers(1, 4))
    def claim(self, data: st.DataObject, limit: int) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        batch_id = data.draw(st.sampled_from(sorted(self.books.batches)))
        due, queued = self.books.claimable(batch_id)
        claimed = claim(self.database, worker, **{batch_id: limit})
        ids = {one.id for one in claimed}
        assert len(ids) == len(claimed) == min(limit, len(due) + len(queued))
        # Those that are due come first, in the order of times that only the database knows.
        assert len(ids & due) == min(limit, len(due))
        assert ids - due == set(queued[: max(0, limit - len(due))])
        self._took(worker, claimed)

    @rule(data=st.data())
    def claim_one(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        job_id = data.draw(st.sampled_from(sorted(self.books.jobs)))
        claimed = claim_one(self.database, worker, job_id)
        assert (claimed is not None) == (self.books.jobs[job_id].state in {"queued", "waiting"})
        self._took(worker, [claimed] if claimed else [])

    def _took(self, worker: str, claimed: list[Claimed]) -> None:
        for one in claimed:
            assert self.books.claim(worker, one.id) == one.fence
            assert self.books.jobs[one.id].attempts == one.attempts
            self.calls.append((worker, one))

    @rule()
    def time_passes(self) -> None:
        past = datetime.now(UTC) - timedelta(seconds=1)
        with self.database.write() as connection:
            connection.execute(update(job).where(job.c.state == State.WAITING).values(due_at=past))
        for one in self.books.jobs.values():
            one.is_due = True

    # --- answering --------------------------------------------------------------------------------

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """Record a group of outcomes: fresh ones and stale ones, in any order."""
        chosen = st.lists(st.sampled_from(self.calls), min_size=1, max_size=4, unique_by=_key)
        group = data.draw(chosen)
        rows, taken = [], set()
        for _, one in group:
            state = data.draw(st.sampled_from(["succeeded", "failed", "waiting"]))
            tokens = data.draw(st.sampled_from([None, 7, 1_000])) if state != "succeeded" else 7
            burns, delay = data.draw(st.booleans()), data.draw(st.sampled_from([0.0, 3600.0]))
            told: dict[str, Any] = {"usage": _usage(tokens), "maybe_billed": tokens is None}
            told = {"usage": _usage(tokens)} if state == "succeeded" else told
            said = answer(**told) if state == "succeeded" else failure(**told)
            more = {"delay_seconds": delay, "burns_attempt": burns}
            rows.append(outcome_of(one, said, State(state), **more))
            if self.books.holds(one.id, one.fence):
                taken.add(one.id)
                self._settle(one, state, tokens, is_due=not delay, burns=burns)
            billed = state != "succeeded" and tokens is None
            self.books.answer((one.id, one.fence), tokens, billed=billed)
        assert put(self.database, *rows).job_ids == taken

    def _settle(
        self, one: Claimed, state: str, tokens: int | None, *, is_due: bool, burns: bool
    ) -> None:
        entry = self.books.jobs[one.id]
        self.books.batches[entry.batch_id].tokens += tokens or 0
        if state == "waiting":
            entry.state, entry.worker, entry.is_due = "waiting", None, is_due
            entry.attempts -= not burns
        else:
            self.books.end(one.id, state)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def mark_sent(self, data: st.DataObject) -> None:
        keys = [_key(one) for one in data.draw(_some(self.calls))]
        with self.database.write() as connection:
            records.mark_sent(connection, keys)
        for key in keys:
            if self.books.ledger[key].state == "prepared":
                self.books.ledger[key].state = "sent"

    # --- giving back, dying -----------------------------------------------------------------------

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), repeat=st.booleans())
    def give_back(self, data: st.DataObject, repeat: bool) -> None:
        group = data.draw(_some(self.calls))
        worker = group[0][0]
        keys = [_key(one) for one in group if one[0] == worker]
        with self.database.write() as connection:
            lost.give_back(connection, worker, keys, "retry" if repeat else "fail")
        for job_id, fence in keys:
            if self.books.holds(job_id, fence):
                if repeat:
                    self.books.queue(job_id)
                    self.books.jobs[job_id].attempts -= 1
                else:
                    self.books.end(job_id, "failed")
            self.books.forget((job_id, fence))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def forget_calls(self, data: st.DataObject) -> None:
        """What a worker does that sees that its job was cancelled: never with a job it holds."""
        keys = [_key(one) for one in data.draw(_some(self.calls))]
        keys = [key for key in keys if not self.books.holds(*key)]
        if keys:
            with self.database.write() as connection:
                forget_calls(connection, keys, "cancelled", "cut off")
            for key in keys:
                self.books.forget(key)

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        lose(self.database, worker)
        held = [id_ for id_, one in self.books.jobs.items() if one.worker == worker]
        assert rescue(self.database, MAX_ATTEMPTS) == len(held)
        for job_id in held:
            self.books.forget((job_id, self.books.jobs[job_id].fence))
            if self.books.jobs[job_id].attempts < MAX_ATTEMPTS:
                self.books.queue(job_id)
            else:
                self.books.end(job_id, "failed")
        self.workers[self.workers.index(worker)] = enlist(self.database)

    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        """A worker renews a lease that had run out before anybody saw it: it keeps its jobs."""
        worker = data.draw(st.sampled_from(self.workers))
        lose(self.database, worker)
        with self.database.write() as connection:
            leases.heartbeat(connection, worker, 60.0)
        assert rescue(self.database, MAX_ATTEMPTS) == 0

    # --- what people do ---------------------------------------------------------------------------

    @rule(data=st.data())
    def cancel_one(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.books.jobs)))
        is_open = self.books.jobs[job_id].state in {"queued", "waiting", "running"}
        assert cancel_job(self.database, job_id) == is_open
        if is_open:
            self._cancelled(job_id)

    @rule(data=st.data(), really=st.integers(0, 3))
    def cancel_batch(self, data: st.DataObject, really: int) -> None:
        batch_id = data.draw(st.sampled_from(sorted(self.books.batches)))
        if really:
            return
        ours = [id_ for id_, one in self.books.jobs.items() if one.batch_id == batch_id]
        still = {"queued", "waiting", "running"}
        still_open = [id_ for id_ in ours if self.books.jobs[id_].state in still]
        assert cancel_batch(self.database, batch_id) == len(still_open)
        if still_open:
            self.books.batches[batch_id].state = "cancelling"
        for job_id in still_open:
            self._cancelled(job_id)

    def _cancelled(self, job_id: str) -> None:
        """Its call is cut off: that is on the books at once, whether its worker lives or not."""
        one = self.books.jobs[job_id]
        if one.state == "running":
            self.books.forget((job_id, one.fence))
        self.books.end(job_id, "cancelled")

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        batch_id = data.draw(st.sampled_from(sorted(self.books.batches)))
        ours = [id_ for id_, one in self.books.jobs.items() if one.batch_id == batch_id]
        again = [id_ for id_ in ours if self.books.jobs[id_].state == "failed"]
        assert run_again(self.database, batch_id) == len(again)
        for job_id in again:
            self.books.queue(job_id)
            self.books.jobs[job_id].attempts = 0
        if again:
            self.books.batches[batch_id].state = "in_progress"
            self.books.batches[batch_id].counts["failed"] = 0

    # --- what holds after every act ---------------------------------------------------------------

    @invariant()
    def jobs_are_as_the_model_has_them(self) -> None:
        found = {row.id: row for row in self._rows(job)}
        assert {
            id_: (row.state, row.fence, row.attempts, row.worker_id) for id_, row in found.items()
        } == {
            id_: (one.state, one.fence, one.attempts, one.worker)
            for id_, one in self.books.jobs.items()
        }
        for id_, row in found.items():
            assert row.fence >= self.fences[id_]
            self.fences[id_] = row.fence

    @invariant()
    def the_ledger_is_as_the_model_has_it(self) -> None:
        found = {(row.job_id, row.fence): row for row in self._rows(attempt)}
        assert {
            key: (row.worker_id, row.state, row.maybe_billed, row.total_tokens)
            for key, row in found.items()
        } == {
            key: (call.worker, call.state, call.maybe_billed, call.tokens)
            for key, call in self.books.ledger.items()
        }
        # One line per claim: a fence is never given twice, and never without a line.
        assert len(found) == sum(one.fence for one in self.books.jobs.values())

    @invariant()
    def counters_and_sums_are_as_the_model_has_them(self) -> None:
        states = Counter((one.batch_id, one.state) for one in self.books.jobs.values())
        for row in self._rows(batch):
            of = self.books.batches[row.id]
            counts = tuple(getattr(row, name) for name in COUNTED)
            assert counts == tuple(states[row.id, name] for name in COUNTED)
            assert (row.state, row.prompt_tokens) == (of.state, of.tokens)
            over = row.state in {BatchState.COMPLETED, BatchState.CANCELLED}
            assert over == (sum(counts) == row.total) == (row.finished_at is not None)
        with self.database.read() as connection:
            unknown = queries.count_unknown(connection)
        assert unknown == sum(call.maybe_billed for call in self.books.ledger.values())

    def _rows(self, table: Any) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(select(table)))


def _key(call: tuple[str, Claimed]) -> tuple[str, int]:
    return call[1].id, call[1].fence


def _some(
    calls: list[tuple[str, Claimed]],
) -> st.SearchStrategy[list[tuple[str, Claimed]]]:
    return st.lists(st.sampled_from(calls), min_size=1, max_size=4, unique_by=_key)


def _usage(tokens: int | None) -> Usage | None:
    return None if tokens is None else Usage(prompt_tokens=tokens, total_tokens=tokens)


def test_whatever_happens_the_books_say_what_the_model_says(database: Database) -> None:
    library = type("LibraryOnThis", (Library,), {"database": database})
    run_state_machine_as_test(
        library, settings=settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
    )


def test_the_call_of_a_cancelled_job_is_of_unknown_outcome_once_its_worker_is_dead(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    worker = enlist(database)
    gone, _ = claim(database, worker, **{batch_id: 2})
    cancel_job(database, gone.id)
    lose(database, worker)
    rescue(database, MAX_ATTEMPTS)
    (call,) = ledger(database, gone.id)
    assert (call["state"], call["maybe_billed"]) == (AttemptState.UNKNOWN, True)


@pytest.mark.parametrize("repeat", [True, False])
def test_a_worker_that_claimed_a_job_again_gives_back_and_forgets_the_old_call_only(
    database: Database, repeat: bool
) -> None:
    worker = enlist(database)
    (job_id,) = job_ids(database, submit_batch(database, 1))
    old = claim_one(database, worker, job_id)
    lose(database, worker)
    rescue(database, MAX_ATTEMPTS)
    new = claim_one(database, worker, job_id)
    assert old is not None
    assert new is not None
    with database.write() as connection:
        lost.give_back(connection, worker, [(old.id, old.fence)], "retry" if repeat else "fail")
        forget_calls(connection, [(old.id, old.fence)], "cancelled", "cut off")
    row = raw_job(database, job_id)
    assert (row["state"], row["worker_id"], row["attempts"]) == (State.RUNNING, worker, 2)
    states = [call["state"] for call in ledger(database, job_id)]
    assert states == [AttemptState.UNKNOWN, AttemptState.PREPARED]
