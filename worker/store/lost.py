"""Calls whose outcome nobody knows: their workers died, or cut them off when they stopped.

Each such call stays in the ledger as `unknown`, maybe billed. What becomes of its job is a policy:
the job's own, or else the settings': call again, let a person decide, or fail.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, bindparam, false, or_, select, update

from worker.jobs.outcomes import ErrorClass
from worker.jobs.states import AttemptState, State
from worker.models import attempt, batch, job, worker
from worker.settings import UnknownOutcome
from worker.store.clock import from_now
from worker.store.leases import Sign, still_held
from worker.store.records import finish_batches

WORKER_LOST: Final = "worker_lost"
OUTCOME_UNKNOWN: Final = "outcome_unknown"
POISON: Final = "poison"

_OPEN_CALL: Final = (AttemptState.PREPARED, AttemptState.SENT)
_WHAT_FOLLOWS: Final = {
    UnknownOutcome.HOLD: "a person decides whether it is made again",
    UnknownOutcome.FAIL: "it is not made again",
}


def rescue(
    connection: Connection,
    dead: Sequence[Sign],
    *,
    max_attempts: int,
    unknown_outcome: str,
    limit: int = 1_000,
) -> int:
    """Take jobs from these workers, which are dead; return how many.

    One that has given a sign since it was thought dead keeps its jobs. A job that has used up its
    attempts fails as `poison`: it may be what killed its workers.
    """
    lost = connection.execute(
        select(job.c.id, job.c.attempts, job.c.unknown_outcome)
        .where(job.c.state == State.RUNNING, job.c.worker_id.in_(_still_dead(dead)))
        .order_by(job.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not lost:
        return 0
    message = "the worker died during the call; its outcome is unknown"
    lose_calls(connection, [row.id for row in lost], WORKER_LOST, message)
    poison = [row for row in lost if row.attempts >= max_attempts]
    for row in poison:
        _fail(connection, [row.id], POISON, _story(connection, row.id))
    rest = [row for row in lost if row.attempts < max_attempts]
    _follow_policy(connection, rest, unknown_outcome, burnt=True)
    return len(lost)


def _still_dead(dead: Sequence[Sign]) -> Select[tuple[str]]:
    """Find those of the workers whose sign is still the same."""
    same = (
        and_(
            worker.c.id == sign.worker_id,
            or_(worker.c.lease_until == sign.lease_until, worker.c.stopped_at.is_not(None)),
        )
        for sign in dead
    )
    return select(worker.c.id).where(or_(false(), *same))


def give_back(
    connection: Connection, worker_id: str, keys: Sequence[tuple[str, int]], unknown_outcome: str
) -> None:
    """Return jobs, by (id, fence), whose calls a stopping worker has cut: no attempt is burnt."""
    held = still_held(connection, worker_id)
    ours = [job_id for job_id, fence in keys if held.get(job_id) == fence]
    rows = connection.execute(
        select(job.c.id, job.c.unknown_outcome)
        .where(job.c.id.in_(ours), job.c.state == State.RUNNING, job.c.worker_id == worker_id)
        .order_by(job.c.id)
        .with_for_update()
    ).all()
    _follow_policy(connection, rows, unknown_outcome, burnt=False)
    forget_calls(connection, keys, "worker_stopped", "the worker stopped before the answer came")


def forget_calls(
    connection: Connection, keys: Sequence[tuple[str, int]], code: str, message: str
) -> None:
    """Mark calls, by (job id, fence), that were cut off here: they may have been billed."""
    if not keys:
        return
    connection.execute(
        update(attempt)
        .where(
            attempt.c.job_id == bindparam("b_id"),
            attempt.c.fence == bindparam("b_fence"),
            or_(*(attempt.c.state == state for state in _OPEN_CALL)),  # many rows take no IN
        )
        .values(**_unknown(code, message)),
        [{"b_id": job_id, "b_fence": fence} for job_id, fence in sorted(keys)],
    )


def lose_calls(connection: Connection, job_ids: Sequence[str], code: str, message: str) -> None:
    """Mark the open calls of these jobs: made or not, billed or not, nobody can say any more."""
    connection.execute(
        update(attempt)
        .where(attempt.c.job_id.in_(job_ids), attempt.c.state.in_(_OPEN_CALL))
        .values(**_unknown(code, message))
    )


def settle(
    connection: Connection,
    *,
    again: bool,
    batch_id: str | None = None,
    job_id: str | None = None,
) -> int:
    """End the hold of a batch's jobs, or of one: call again, or fail. Return how many."""
    which = job.c.id == job_id if job_id is not None else job.c.batch_id == batch_id
    held = list(
        connection.scalars(
            select(job.c.id)
            .where(which, job.c.state == State.HELD)
            .order_by(job.c.id)
            .with_for_update()
        )
    )
    if again:
        connection.execute(
            update(job)
            .where(job.c.id.in_(held), job.c.state == State.HELD)
            .values(state=State.QUEUED)
        )
    else:
        message = "its call may have been billed and brought no answer; a person gave it up"
        _fail(connection, held, OUTCOME_UNKNOWN, message, out_of=State.HELD)
    return len(held)


def _unknown(code: str, message: str) -> dict[str, Any]:
    return {
        "state": AttemptState.UNKNOWN,
        "answered_at": from_now(),
        "maybe_billed": True,
        "error_code": code,
        "error_message": message,
    }


def _follow_policy(
    connection: Connection, lost: Sequence[Any], default: str, *, burnt: bool
) -> None:
    """Do with running jobs what their policies say."""
    chosen: dict[str, list[str]] = {policy: [] for policy in UnknownOutcome}
    for row in lost:
        chosen[row.unknown_outcome or default].append(row.id)
    unburnt = {} if burnt else {"attempts": job.c.attempts - 1}
    _move(connection, chosen[UnknownOutcome.RETRY], state=State.QUEUED, **unburnt)
    _move(
        connection,
        chosen[UnknownOutcome.HOLD],
        state=State.HELD,
        error_class=ErrorClass.RETRY,
        error_code=OUTCOME_UNKNOWN,
        error_message=_lost_text(UnknownOutcome.HOLD),
        **unburnt,
    )
    message = _lost_text(UnknownOutcome.FAIL)
    _fail(connection, chosen[UnknownOutcome.FAIL], OUTCOME_UNKNOWN, message)


def _lost_text(policy: UnknownOutcome) -> str:
    return f"its worker ended during the call, which may have been billed: {_WHAT_FOLLOWS[policy]}"


def _move(connection: Connection, job_ids: Sequence[str], **values: Any) -> None:
    if job_ids:
        connection.execute(
            update(job)
            .where(job.c.id.in_(job_ids), job.c.state == State.RUNNING)
            .values(worker_id=None, **values)
        )


def _story(connection: Connection, job_id: str) -> str:
    """Tell of the workers that died during a job's calls."""
    deaths = connection.execute(
        select(attempt.c.answered_at, worker.c.name)
        .join_from(attempt, worker, worker.c.id == attempt.c.worker_id, isouter=True)
        .where(attempt.c.job_id == job_id, attempt.c.error_code == WORKER_LOST)
        .order_by(attempt.c.fence)
    ).all()
    told = ", ".join(
        f"{row.name or 'a worker'} ({row.answered_at:%Y-%m-%d %H:%M:%S} UTC)" for row in deaths
    )
    return (
        f"its attempts are used up, and {len(deaths)} of its calls ended with the death of the "
        f"worker, found at the times given: {told}"
    )


def _fail(
    connection: Connection,
    job_ids: Sequence[str],
    code: str,
    message: str,
    out_of: State = State.RUNNING,
) -> None:
    """Fail jobs, count them in their batches, and close the batches that this ends."""
    if not job_ids:
        return
    failed = connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids), job.c.state == out_of)
        .values(
            state=State.FAILED,
            worker_id=None,
            finished_at=from_now(),
            error_class=ErrorClass.PERMANENT,
            error_code=code,
            error_message=message,
        )
        .returning(job.c.batch_id)
    )
    counts = Counter(row.batch_id for row in failed if row.batch_id)
    for batch_id, count in sorted(counts.items()):
        connection.execute(
            update(batch).where(batch.c.id == batch_id).values(failed=batch.c.failed + count)
        )
    finish_batches(connection, sorted(counts))
