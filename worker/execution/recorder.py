"""The group commit: outcomes from the event loop are recorded together, in a thread of its own.

While one transaction runs the next one's records gather, so the busier the process the larger the
groups. A record is kept until the database has it: while the database is away, it is tried again,
for ever; but a process that stops has an end to its patience, and calls `give_up`.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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

GROUP_CHARACTERS: Final = 4_000_000
"""The most characters of answers in one transaction, or one answer: bounds the memory it takes."""

LINGER_SHARE: Final = 0.02
"""How long the first record of a group waits for company, as a share of what its call took: so
much of a slot's time is given: where records come one by one, transactions are what costs."""

LINGER_SECONDS: Final = (0.01, 0.1)
"""How long that is at least and at most."""

OUTAGE_PAUSE_SECONDS: Final = 0.5

CLOSE_SECONDS: Final = 1.0
"""How long closing waits for a thread that hangs in the database, once nobody waits for it."""

UNRECORDABLE: Final = "answer_unrecordable"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A record on its way; `taken` is told whether its job took it."""

    record: Record
    taken: "asyncio.Future[bool]"


class Recorder:
    """Takes records from the event loop, writes them in groups, and tells the loop when it did.

    `record` and `give_up` belong to the event loop; `close` to any other thread.
    """

    def __init__(self, database: Database, outage: Outage) -> None:
        self._database = database
        self._outage = outage
        self._given_up = threading.Event()
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._open: set[_Entry] = set()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    async def record(self, one: Record) -> bool:
        """Record an outcome; return whether the job took it (False: it was ours no longer)."""
        entry = _Entry(one, asyncio.get_running_loop().create_future())
        self._open.add(entry)
        self._queue.put(entry)
        try:
            return await entry.taken
        finally:
            self._open.discard(entry)

    def give_up(self) -> None:
        """Have no more patience with a database that is away: whoever waits for a record is let go.

        What was not written is logged, and is of unknown outcome once the lease has ended.
        """
        self._given_up.set()
        _lose(self._open)

    def close(self) -> bool:
        """Write what is left, then end; return whether it did, and does not hang in the database.

        Waits as long as a database that is away does, unless it was given up before.
        """
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS if self._given_up.is_set() else None)
        return not self._thread.is_alive()

    def _run(self) -> None:
        open_ = True
        while open_:
            group, open_ = self._gather()
            if group:
                self._write(group)

    def _gather(self) -> tuple[list[_Entry], bool]:
        first = self._queue.get()
        if first is None:
            return [], False
        group = [first]
        time.sleep(_linger(first.record.exchange.seconds))
        characters = _characters(first)
        while len(group) < GROUP and characters < GROUP_CHARACTERS:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return group, False
            group.append(more)
            characters += _characters(more)
        return group, True

    def _write(self, group: Sequence[_Entry]) -> None:
        loop = group[0].taken.get_loop()
        try:
            recorded = self._record([one.record for one in group])
        except DatabaseError:
            loop.call_soon_threadsafe(_lose, group)
        else:
            loop.call_soon_threadsafe(_settle, group, recorded)

    def _record(self, records: Sequence[Record]) -> Recorded:
        """Record a group for certain: an answer that was paid for is not given up lightly.

        Raises DatabaseError once all is given up.
        """
        while True:
            try:
                with self._database.write() as connection:
                    recorded = record(connection, records)
            except DatabaseError as error:
                self._outage.note(error)
                if self._given_up.wait(OUTAGE_PAUSE_SECONDS):
                    raise
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


def _characters(entry: _Entry) -> int:
    return len(entry.record.exchange.outcome.body or "")


def _linger(call_seconds: float) -> float:
    least, most = LINGER_SECONDS
    return min(max(call_seconds * LINGER_SHARE, least), most)


def _settle(group: Iterable[_Entry], recorded: Recorded) -> None:
    for one in group:
        if not one.taken.done():
            one.taken.set_result(one.record.job_id in recorded.job_ids)


def _lose(group: Iterable[_Entry]) -> None:
    lost = sorted(one.record.job_id for one in group if not one.taken.done())
    if lost:
        log.critical("answers_lost", jobs=lost)
    _settle(group, _NOTHING)
