"""The group commit: outcomes from the event loop are recorded together, in a thread of its own.

While one transaction runs the next one's records gather, so the busier the process the larger the
groups. A record is kept until the database has it: while the database is away, it is tried again.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from worker.errors import DatabaseError
from worker.execution.outage import Outage
from worker.jobs.outcomes import ErrorClass, Failure, Phase
from worker.jobs.states import State
from worker.store.engine import Database, RefusedError
from worker.store.records import Record, Recorded, record

GROUP: Final = 500
"""The most records in one transaction: bounds the time its locks are held."""

LINGER_SECONDS: Final = 0.01
"""How long the first record of a group waits for company."""

OUTAGE_PAUSE_SECONDS: Final = 0.5

UNRECORDABLE: Final = "answer_unrecordable"

log = structlog.get_logger(__name__)


class Recorder:
    """Takes records from the event loop, writes them in groups, and tells the loop when it did."""

    def __init__(self, database: Database, outage: Outage) -> None:
        self._database = database
        self._outage = outage
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[tuple[Record, asyncio.Future[bool]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    async def record(self, one: Record) -> bool:
        """Record an outcome; return whether the job took it (False: it was ours no longer)."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.put((one, future))
        return await future

    def close(self) -> None:
        """Write what is left, then stop; what cannot be written now is given up."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            group, open_ = self._gather()
            if group:
                self._write(group)

    def _gather(self) -> tuple[list[tuple[Record, asyncio.Future[bool]]], bool]:
        first = self._queue.get()
        if first is None:
            return [], False
        group = [first]
        time.sleep(LINGER_SECONDS)
        while len(group) < GROUP:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return group, False
            group.append(more)
        return group, True

    def _write(self, group: Sequence[tuple[Record, asyncio.Future[bool]]]) -> None:
        recorded = self._record([one for one, _ in group])
        loop = group[0][1].get_loop()
        loop.call_soon_threadsafe(_settle, group, recorded)

    def _record(self, records: Sequence[Record]) -> Recorded:
        """Record a group for certain: an answer that was paid for is not given up lightly."""
        while True:
            try:
                with self._database.write() as connection:
                    recorded = record(connection, records)
            except DatabaseError as error:
                self._outage.note(error)
                if self._closing.wait(OUTAGE_PAUSE_SECONDS):
                    log.critical("answers_lost", jobs=[one.job_id for one in records])
                    return _NOTHING
            except RefusedError as error:
                return self._record_refused(records, error)
            else:
                self._outage.over()
                return recorded

    def _record_refused(self, records: Sequence[Record], error: RefusedError) -> Recorded:
        """Record one by one: what the database refuses must not take the others with it."""
        if len(records) > 1:
            return _merged([self._record([one]) for one in records])
        reason = type(error).__name__  # its words would quote the answer
        log.error("record_refused", job_id=records[0].job_id, error=reason)
        barer = _barer(records[0])
        if barer is None:
            log.critical("answers_lost", jobs=[records[0].job_id])
            return _NOTHING
        return self._record([barer])


_NOTHING: Final = Recorded(frozenset(), ())


def _barer(one: Record) -> Record | None:
    """The same call without the contents that the database would not take, then without counts.

    None where even that was refused.
    """
    outcome = one.exchange.outcome
    if isinstance(outcome, Failure) and outcome.code == UNRECORDABLE:
        if outcome.usage is None:
            return None
        barer = replace(outcome, usage=None)
    else:
        barer = Failure(
            ErrorClass.PERMANENT,
            UNRECORDABLE,
            "the database refused to store the answer; the call was made and is billed",
            Phase.ANSWERING,
            maybe_billed=True,
            status=outcome.status,
            usage=outcome.usage,
        )
    return replace(one, exchange=replace(one.exchange, outcome=barer), state=State.FAILED)


def _merged(parts: Sequence[Recorded]) -> Recorded:
    return Recorded(
        frozenset().union(*(part.job_ids for part in parts)),
        tuple(batch for part in parts for batch in part.finished_batches),
    )


def _settle(group: Sequence[tuple[Record, asyncio.Future[bool]]], recorded: Recorded) -> None:
    for one, future in group:
        if not future.done():
            future.set_result(one.job_id in recorded.job_ids)
