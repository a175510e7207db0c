"""Removing what finished long ago, or its contents alone, in short steps beside running work.

Called by `Client.purge`. It never touches what is unfinished, nor a batch that is being submitted.
Every step is a transaction of at most a thousand jobs, so that claims and records go on between
them; a purge that is killed has done whole steps, and the next one goes on.

A batch to be removed is hidden first, as `validating`, the state that nothing shows, claims or
retries. It keeps its `finished_at`, by which it is told from a submission that is under way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, or_, select, update

from worker.jobs.states import BATCH_ENDS, TERMINAL, BatchState, State
from worker.models import attempt, batch, job, tool_call, worker
from worker.store import images, submission
from worker.store.clock import from_now
from worker.store.engine import Database

STEP: Final = 1_000
"""So many jobs are changed in one transaction at most."""

IMAGE_SECONDS: Final = submission.ABANDONED_SECONDS + 3600.0
"""An image that was handed in within this time may belong to a submission that is under way."""

WORKER_SECONDS: Final = 86_400.0
"""A worker's row is kept for so long in any case: it may only have been suspended."""

_BODIES: Final = 100
"""Bodies that refer to images are read so many at a time: they may be large."""

_IMAGES: Final = 50

_LONGEST_TURN_SECONDS: Final = 0.5

_FINISHED: Final = tuple(BATCH_ENDS)


@dataclass(frozen=True, slots=True)
class Purged:
    """What was removed, or, of `batches` and `jobs`, emptied. `calls` are lines of the ledger."""

    batches: int = 0
    jobs: int = 0
    calls: int = 0
    images: int = 0
    workers: int = 0

    def __add__(self, other: "Purged") -> "Purged":
        return Purged(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def purge(
    database: Database,
    older_than_seconds: float,
    *,
    content_only: bool = False,
    on_step: Callable[[Purged], None] = lambda _: None,
) -> Purged:
    """Remove what finished longer ago than that; return what it was.

    With `content_only` rows, counts, usage and the ledger stay, and only what was said goes:
    prompts, answers, arguments of tool calls, and the words of errors, which may quote them.
    `on_step` is told the sum so far. Raises DatabaseError, RefusedError.
    """
    one = _Purge(database, older_than_seconds)
    whole = Purged()
    for steps in (
        one.contents() if content_only else one.rows(),
        one.images(),
        one.workers(),
    ):
        for step in steps:
            whole += step
            on_step(whole)
    return whole


def is_emptied(connection: Connection, batch_id: str) -> bool:
    """Whether a purge has begun to remove a batch's contents: its first job is without."""
    first = select(job.c.body).where(job.c.batch_id == batch_id).order_by(job.c.id).limit(1)
    return connection.scalar(first) == ""


class _Purge:
    """One purge: each method yields what each of its steps did."""

    def __init__(self, database: Database, older_than_seconds: float) -> None:
        self._database = database
        self._age = older_than_seconds
        cut = from_now(-older_than_seconds)
        self._old_batch = and_(batch.c.state.in_(_FINISHED), batch.c.finished_at < cut)
        self._old_job = and_(job.c.state.in_(TERMINAL), job.c.finished_at < cut)

    @contextmanager
    def _step(self) -> Iterator[Connection]:
        """A transaction, and on SQLite, where all writers share one lock, a turn for the others."""
        began = time.monotonic()
        with self._database.write() as connection:
            yield connection
        if self._database.is_sqlite:
            time.sleep(min(time.monotonic() - began, _LONGEST_TURN_SECONDS))

    # --- rows -------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Purged]:
        """Remove whole batches, then single jobs."""
        for batch_ids in self._batches(or_(self._old_batch, _HIDDEN)):
            with self._step() as connection:
                connection.execute(
                    update(batch)
                    .where(batch.c.id.in_(batch_ids), self._old_batch)
                    .values(state=BatchState.VALIDATING, key=None)
                )
            for batch_id in batch_ids:
                yield from self._drop(batch_id)
        for ids in self._singles(self._old_job):
            with self._step() as connection:
                found = self._locked(connection, ids)
                calls = submission.drop_jobs(connection, found)
            yield Purged(jobs=len(found), calls=calls)

    def _drop(self, batch_id: str) -> Iterator[Purged]:
        is_last = False
        while not is_last:
            with self._step() as connection:
                step = submission.drop_step(connection, batch_id)
            is_last = step.is_last
            yield Purged(batches=step.batches, jobs=step.jobs, calls=step.calls)

    # --- contents ---------------------------------------------------------------------------------

    def contents(self) -> Iterator[Purged]:
        """Empty the jobs of whole batches, then single ones."""
        for batch_ids in self._batches(self._old_batch):
            for batch_id in batch_ids:
                yield from self._empty(batch_id)
        for ids in self._singles(and_(self._old_job, job.c.body != "")):
            with self._step() as connection:
                count = _empty_jobs(connection, self._locked(connection, ids))
            yield Purged(jobs=count)

    def _empty(self, batch_id: str) -> Iterator[Purged]:
        """Empty a batch's jobs in their order, so that the last one tells that all are."""
        with self._database.read() as connection:
            if _is_emptied_whole(connection, batch_id):
                return
        last, batches, size = "", 1, STEP
        while size == STEP:
            with self._step() as connection:
                ids = self._page(connection, batch_id, last)
                count = _empty_jobs(connection, ids)
            yield Purged(batches=batches, jobs=count)
            last, batches, size = ids[-1] if ids else "", 0, len(ids)

    def _page(self, connection: Connection, batch_id: str, last: str) -> Sequence[str]:
        """The next jobs of a batch; none where it was taken up again meanwhile."""
        # Locked, so that no retry begins before this step has ended.
        chosen = select(batch.c.id).where(batch.c.id == batch_id, self._old_batch)
        if connection.scalar(chosen.with_for_update()) is None:
            return ()
        page = select(job.c.id).where(job.c.batch_id == batch_id, job.c.id > last)
        return connection.scalars(page.order_by(job.c.id).limit(STEP)).all()

    # --- finding ----------------------------------------------------------------------------------

    def _batches(self, which: ColumnElement[bool]) -> Iterator[Sequence[str]]:
        """Yield the ids of batches, some at a time, the oldest first."""
        last = ""
        while True:
            chosen = select(batch.c.id).where(batch.c.id > last, which)
            with self._database.read() as connection:
                ids = connection.scalars(chosen.order_by(batch.c.id).limit(STEP)).all()
            if not ids:
                return
            yield ids
            last = ids[-1]

    def _singles(self, which: ColumnElement[bool]) -> Iterator[Sequence[str]]:
        """Yield the ids of single jobs, some at a time, the oldest first.

        Every page is one of all single jobs: reading on to the next that fits has no bound.
        """
        last = ""
        while True:
            page = select(job.c.id, which).where(job.c.batch_id.is_(None), job.c.id > last)
            # In the very order of the index, which PostgreSQL would else not use for the order.
            ordered = page.order_by(job.c.batch_id, job.c.id).limit(STEP)
            with self._database.read() as connection:
                rows = connection.execute(ordered).all()
            if ids := [row[0] for row in rows if row[1]]:
                yield ids
            if len(rows) < STEP:
                return
            last = rows[-1][0]

    def _locked(self, connection: Connection, ids: Sequence[str]) -> Sequence[str]:
        """Lock those of these jobs that are still finished and old."""
        chosen = select(job.c.id).where(job.c.id.in_(ids), self._old_job).order_by(job.c.id)
        return connection.scalars(chosen.with_for_update()).all()

    # --- images and workers -----------------------------------------------------------------------

    def images(self) -> Iterator[Purged]:
        """Remove the images that no job refers to.

        What is stored is listed first, then what is referred to is struck off. Whoever hands in
        an image that is there already makes it young again, and a young one is not removed: a
        reference that comes after the look cannot lose its image.
        """
        left = self._stored_images()
        if left:
            self._strike_off(left)
        unused = sorted(left)
        for at in range(0, len(unused), _IMAGES):
            with self._step() as connection:
                count = images.remove(connection, unused[at : at + _IMAGES], IMAGE_SECONDS)
            yield Purged(images=count)

    def _stored_images(self) -> set[str]:
        found: set[str] = set()
        last, size = "", STEP
        while size == STEP:
            with self._database.read() as connection:
                page = images.digests_after(connection, last, STEP)
            found.update(page)
            last, size = page[-1] if page else "", len(page)
        return found

    def _strike_off(self, left: set[str]) -> None:
        last, size = "", _BODIES
        while size == _BODIES and left:
            with self._database.read() as connection:
                rows = connection.execute(images.bodies_after(last, _BODIES)).all()
            for row in rows:
                if row.body is not None:
                    left -= images.digests_in(row.body)
            last, size = rows[-1].id if rows else "", len(rows)

    def workers(self) -> Iterator[Purged]:
        """Remove the rows of workers that ended long ago and hold nothing."""
        ended = from_now(-max(self._age, WORKER_SECONDS))
        holds = exists().where(job.c.worker_id == worker.c.id, job.c.state == State.RUNNING)
        with self._step() as connection:
            gone = connection.execute(
                delete(worker).where(worker.c.lease_until < ended, ~holds)
            ).rowcount
        yield Purged(workers=gone)


_HIDDEN: Final = and_(batch.c.state == BatchState.VALIDATING, batch.c.finished_at.is_not(None))
"""Batches whose removal has begun."""


def _is_emptied_whole(connection: Connection, batch_id: str) -> bool:
    last = select(job.c.body).where(job.c.batch_id == batch_id).order_by(job.c.id.desc()).limit(1)
    return connection.scalar(last) in {"", None}


def _empty_jobs(connection: Connection, ids: Sequence[str]) -> int:
    """Remove the contents of jobs; return how many had any. An empty body is the mark of it."""
    connection.execute(
        update(attempt)
        .where(attempt.c.job_id.in_(ids), attempt.c.error_message.is_not(None))
        .values(error_message=None)
    )
    connection.execute(update(tool_call).where(tool_call.c.job_id.in_(ids)).values(arguments=""))
    return connection.execute(
        update(job)
        .where(job.c.id.in_(ids), job.c.body != "")
        .values(body="", **dict.fromkeys(_CONTENTS))
    ).rowcount


_CONTENTS: Final = (
    "content",
    "reasoning_content",
    "refusal",
    "response",
    "followup",
    "error_message",
)
