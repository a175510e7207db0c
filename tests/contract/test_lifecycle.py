"""Random lives of a batch: whatever happens in whatever order, the invariants of the store hold."""

from typing import Any

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
from sqlalchemy import select

from tests.contract.acts import (
    assert_counters_match_rows,
    batch_of,
    cancel_batch,
    cancel_job,
    claim,
    claim_due,
    enlist,
    failure,
    give_back,
    job_ids,
    lose,
    outcome_of,
    put,
    put_off,
    rescue,
    run_again,
    submit_batch,
)
from worker.jobs.states import TERMINAL, TRANSITIONS, AttemptState, State
from worker.models import attempt, job
from worker.store.claims import Claimed
from worker.store.engine import Database

SIZE = 5
MAX_ATTEMPTS = 3
EXAMPLES = 20 if settings.get_current_profile_name() == "repeatable" else 500


class Life(RuleBasedStateMachine):
    """One batch, workers that come and die, answers that come in time, late or twice."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Claimed]] = []
        self.seen: dict[str, tuple[State, int]] = {}
        self.terminal: dict[str, int] = {}

    @initialize()
    def begin(self) -> None:
        self.batch_id = submit_batch(self.database, SIZE)
        self.jobs = job_ids(self.database, self.batch_id)
        self.worker_id = enlist(self.database)

    @rule(count=st.integers(1, 3))
    def claim(self, count: int) -> None:
        claimed = claim(self.database, self.worker_id, **{self.batch_id: count})
        self.calls += [(self.worker_id, one) for one in claimed]

    @rule()
    def claim_due(self) -> None:
        claimed = claim_due(self.database, self.worker_id)
        self.calls += [(self.worker_id, one) for one in claimed]

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), state=st.sampled_from([State.SUCCEEDED, State.FAILED]))
    def answer(self, data: st.DataObject, state: State) -> None:
        _, one = data.draw(st.sampled_from(self.calls))
        told = None if state is State.SUCCEEDED else failure()
        recorded = put(self.database, outcome_of(one, told, state))
        if recorded.job_ids:
            self.terminal[one.id] = self.terminal.get(one.id, 0) + 1
            assert self.terminal[one.id] == 1, "two terminal records of one job"

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), delay=st.sampled_from([0.0, 3600.0]), burns=st.booleans())
    def put_off(self, data: st.DataObject, delay: float, burns: bool) -> None:
        _, one = data.draw(st.sampled_from(self.calls))
        put_off(self.database, one, delay, burns_attempt=burns)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        worker_id, one = data.draw(st.sampled_from(self.calls))
        give_back(self.database, worker_id, [(one.id, one.fence)])

    @rule()
    def worker_dies(self) -> None:
        lose(self.database, self.worker_id)
        rescue(self.database, MAX_ATTEMPTS)
        self.worker_id = enlist(self.database)

    @rule(data=st.data())
    def cancel_one(self, data: st.DataObject) -> None:
        cancel_job(self.database, data.draw(st.sampled_from(self.jobs)))

    @rule(really=st.integers(0, 4))
    def cancel_batch(self, really: int) -> None:
        if not really:
            cancel_batch(self.database, self.batch_id)

    @rule()
    def retry(self) -> None:
        run_again(self.database, self.batch_id)
        for job_id, row in self._rows().items():
            if row.state == State.QUEUED:
                self.terminal.pop(job_id, None)

    def _rows(self) -> dict[str, Any]:
        with self.database.read() as connection:
            rows = connection.execute(select(job).where(job.c.batch_id == self.batch_id))
            return {row.id: row for row in rows}

    @invariant()
    def no_job_is_lost_and_each_step_is_drawn(self) -> None:
        if not hasattr(self, "batch_id"):
            return
        rows = self._rows()
        assert sorted(rows) == self.jobs
        for job_id, row in rows.items():
            state, fence = State(row.state), row.fence
            before, old_fence = self.seen.get(job_id, (State.QUEUED, 0))
            assert fence >= old_fence
            assert row.attempts >= 0
            if before != state:
                assert state in _within_two_steps(before), (before, state)
            self.seen[job_id] = (state, fence)

    @invariant()
    def the_counters_are_the_rows(self) -> None:
        if hasattr(self, "batch_id"):
            assert_counters_match_rows(self.database, self.batch_id)

    @invariant()
    def every_claim_has_its_row_in_the_ledger_and_only_running_jobs_an_open_call(self) -> None:
        if not hasattr(self, "batch_id"):
            return
        with self.database.read() as connection:
            rows = connection.execute(select(attempt).where(attempt.c.job_id.in_(self.jobs))).all()
        jobs = self._rows()
        assert len(rows) == sum(row.fence for row in jobs.values())
        for call in rows:
            owner = jobs[call.job_id]
            is_open = call.state in {AttemptState.PREPARED, AttemptState.SENT}
            # A cancelled job's call is cut by its worker, which then says so.
            if is_open and owner.state != State.CANCELLED:
                assert (owner.state, owner.fence) == (State.RUNNING, call.fence)

    def teardown(self) -> None:
        if not hasattr(self, "batch_id"):
            return
        for _ in range(20 * MAX_ATTEMPTS):
            if batch_of(self.database, self.batch_id).is_finished:
                break
            taken = claim(self.database, self.worker_id, **{self.batch_id: SIZE})
            put(self.database, *(outcome_of(one) for one in taken))
            for row in self._rows().values():
                if row.state == State.WAITING:
                    cancel_job(self.database, row.id)
            lose(self.database, self.worker_id)
            rescue(self.database, MAX_ATTEMPTS)
            self.worker_id = enlist(self.database)
        assert batch_of(self.database, self.batch_id).is_finished
        assert {State(row.state) for row in self._rows().values()} <= TERMINAL


def _within_two_steps(before: State) -> set[State]:
    """One act may be two steps: a worker's death takes a job back, its retry out of its end."""
    near = set(TRANSITIONS[before])
    return near.union(*(TRANSITIONS[one] for one in near))


def test_no_order_of_events_breaks_an_invariant(database: Database) -> None:
    life = type("LifeOnThis", (Life,), {"database": database})
    run_state_machine_as_test(
        life, settings=settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)
    )
