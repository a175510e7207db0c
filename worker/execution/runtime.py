"""The composition root of a worker process: built once, lazily, and the door for Celery's tasks.

One thread runs the event loop that holds every call; SQL runs in a few others. The tasks of
`worker.queue` call in from threads of their own and wait.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import structlog
import uvloop

from worker.errors import DatabaseError, SettingsError
from worker.execution.dispatch import Dispatch, Haul
from worker.execution.kernel import Kernel
from worker.execution.outage import Outage
from worker.execution.recorder import Recorder
from worker.execution.routes import Routes
from worker.execution.shift import OUTAGE_PAUSE_SECONDS, SOON_SECONDS, Quota, Shift, ShiftReport
from worker.execution.slots import Slots
from worker.execution.tidings import Tidings
from worker.execution.upkeep import Upkeep
from worker.gate.gate import Gate, Report
from worker.gate.meter import Caps
from worker.gate.shelf import OwnShelf, SharedShelf, Shelf
from worker.jobs.queues import BULK, INTERACTIVE
from worker.jobs.shaping import Streaming
from worker.jobs.states import State
from worker.retry import RetryPolicy
from worker.settings import Settings
from worker.store import leases, lost, queries, schema, submission
from worker.store.engine import Database
from worker.upstream.client import Timeouts, Upstream

log = structlog.get_logger(__name__)

PATIENCE_SECONDS: Final = 5.0
"""How long a stop waits for a database that is away, once the calls in flight are cut."""

CLOSE_SECONDS: Final = 2.0
"""How long closing waits for each thing that has nothing to do any more."""

T = TypeVar("T")


class Runtime:
    """Everything a worker process runs on. Its methods may be called from any thread.

    `ring` invites this worker to its next shift; it must not block.
    """

    def __init__(self, settings: Settings, name: str, ring: Callable[[], object]) -> None:
        keys = settings.keys()
        if not keys:
            raise SettingsError(["EVOLINK_API_KEY: a worker cannot make calls without a key"])
        self._settings = settings
        self._ring = ring
        self.database = Database(settings.sqlalchemy_url)
        schema.verify(self.database)
        self.outage = Outage("database")
        self._claims = ThreadPoolExecutor(2, thread_name_prefix="claims")
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="calls", daemon=True)
        self._slots = {
            BULK: Slots(settings.max_in_flight),
            INTERACTIVE: Slots(settings.interactive_slots),
        }
        self._recorder = Recorder(self.database, self.outage)
        self.worker_id = self._register(name)
        self._gate = Gate(_shelf(settings), _caps(settings), self.worker_id)
        self._upstream = Upstream(
            keys,
            Timeouts(
                settings.connect_timeout_seconds,
                settings.idle_timeout_seconds,
                settings.call_timeout_seconds,
            ),
        )
        self._kernel = Kernel(
            self._upstream,
            self._recorder,
            RetryPolicy.of(settings),
            Tidings(self._tell, self._claims),
            Streaming(frozenset(settings.stream_models), settings.stream_from_tokens),
        )
        self._dispatch = Dispatch(
            self.database,
            self.worker_id,
            self._gate,
            Routes(settings),
            self._kernel.board,
            deadline_seconds=settings.job_deadline_seconds,
        )
        self._upkeep = Upkeep(self.database, self.worker_id, settings)
        self._shift: Shift | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._cutting: asyncio.Task[None] | None = None
        self._drain_begun: asyncio.Future[None] = self._loop.create_future()
        self._patience_over: asyncio.Future[None] = self._loop.create_future()
        self._hangs = False
        self._thread.start()

    # --- what Celery's tasks call ---------------------------------------------------------------

    def run_shift(self) -> ShiftReport | None:
        """Run a shift and wait for its end; None where one is on already (it is told to look)."""
        return self._wait(self._seen(self._run_shift()))

    def run_single(self, job_id: str) -> State | None:
        """Run one job and wait for it; return the state it is left in.

        None if there is no such job, or if nobody can say: the worker stops, the database is away.
        """
        return self._wait(self._seen(self._run_single(job_id)))

    # --- the sweep ------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Do what is due each second: renew the lease, take over, and let go.

        Raises DatabaseError.
        """
        began = time.monotonic()
        held = self._upkeep.run(self._kernel.board.newly_sent())
        self.outage.over()
        self._loop.call_soon_threadsafe(self._let_go, held, began)

    def clean(self) -> None:
        """Remove what dead submissions left. Raises DatabaseError."""
        with self.database.read() as connection:
            abandoned = submission.abandoned_batches(connection)
        for batch_id in abandoned:
            submission.drop_batch(self.database, batch_id)

    def is_unserved(self) -> bool:
        """Whether there is work to claim, and no shift on to claim it. Raises DatabaseError."""
        return self._shift is None and not self._stopping and self._dispatch.has_work()

    # --- the end --------------------------------------------------------------------------------

    def drain(self, grace_seconds: float) -> None:
        """Claim no more, and cut what is still in flight after the grace. Returns at once.

        Of several graces the one that ends first counts.
        """
        self._stopping = True
        self._loop.call_soon_threadsafe(self._begin_drain, grace_seconds)

    def finish(self) -> None:
        """Wait until nothing is under way any more; begins a drain without grace if none is on."""
        if not self._stopping:
            self.drain(0.0)
        self._wait(self._finish())

    def close(self) -> bool:
        """End the lease and let go of everything; to be called once it is finished.

        Returns False where a thread hangs in the database: waiting for that one would be in vain.
        """
        self._wait(self._retire())
        self._hangs |= not self._recorder.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._claims.shutdown(wait=not self._hangs, cancel_futures=True)
        if not self._hangs:
            self.database.close()
        return not self._hangs

    # --- inside ---------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _register(self, name: str) -> str:
        with self.database.write() as connection:
            return leases.register_worker(
                connection,
                name=name,
                host=socket.gethostname(),
                pid=os.getpid(),
                lease_seconds=self._settings.lease_seconds,
            )

    async def _seen(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what one of Celery's tasks asks for, where `finish` sees it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine of the loop runs in one
        self._under_way.add(task)
        try:
            return await work
        finally:
            self._under_way.discard(task)

    async def _in_sql(self, work: Callable[..., T], *args: Any) -> T:
        """Work in a thread for SQL. Raises DatabaseError, also where a stop can wait no longer."""
        in_thread = self._claims.submit(work, *args)
        working = asyncio.wrap_future(in_thread)
        both: set[asyncio.Future[Any]] = {working, self._patience_over}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        self._hangs |= not in_thread.cancel()
        working.cancel()
        raise DatabaseError("the database cannot be used: it does not answer")

    def _tell(self, reports: Sequence[Report]) -> None:
        self._gate.tell(reports, Counter(self._kernel.board.by_target))

    # shifts

    async def _run_shift(self) -> ShiftReport | None:
        if self._shift is not None:
            self._shift.poke()
            return None
        if self._stopping:
            return None
        shift = self._shift = Shift(
            self._kernel,
            self._slots[BULK],
            lambda places: self._claim(self._dispatch.claim, places),
            Quota(self._settings.shift_jobs, self._settings.shift_seconds),
            self.outage,
        )
        try:
            await shift.claim_all()
        finally:
            self._shift = None
        if shift.report.handed_over and not self._stopping:
            self._ring()
        return await shift.see_off()

    async def _claim(self, claim: Callable[..., Haul], *args: Any) -> Haul:
        """Claim. What comes when the calls have been cut already is given back, never begun."""
        haul = await self._in_sql(claim, *args)
        if self._cutting is None:
            return haul
        await self._give_back([one.key for one in haul.assignments])
        return Haul()

    # single jobs

    async def _run_single(self, job_id: str) -> State | None:
        while not self._stopping:
            try:
                wait = await self._run_once(job_id)
                if wait is None or wait > SOON_SECONDS:
                    return await self._in_sql(self._state, job_id)
            except DatabaseError as error:
                self.outage.note(error)
                wait = OUTAGE_PAUSE_SECONDS
            await asyncio.wait({self._drain_begun}, timeout=wait)
        return None

    async def _run_once(self, job_id: str) -> float | None:
        """Call once for a job; return how long until it may be tried again, None if it is over."""
        slots = self._slots[INTERACTIVE]
        while not slots.take(1):
            await slots.wait_free()
        haul = Haul()
        try:
            if not self._stopping:
                haul = await self._claim(self._dispatch.claim_single, job_id)
        finally:
            if not haul.assignments:
                slots.give()
        if not haul.assignments:
            return haul.wait_seconds
        task = self._kernel.start(haul.assignments[0], slots.give)
        await asyncio.wait({task})
        record = None if task.cancelled() else task.result()
        return record.delay_seconds if record and record.state is State.WAITING else None

    def _state(self, job_id: str) -> State | None:
        with self.database.read() as connection:
            return queries.get_state(connection, job_id)

    # letting go

    def _let_go(self, held: dict[str, int], began: float) -> None:
        """Cut the calls of jobs that are ours no longer: cancelled, or taken over.

        `held` was read after `began`; of later calls it may not know yet.
        """
        lost = [
            call
            for call in self._kernel.board.calls.values()
            if call.started < began and held.get(call.key[0]) != call.key[1]
        ]
        for call in lost:
            call.task.cancel()
        if lost:
            log.info("calls_let_go", count=len(lost))
            keys = [call.key for call in lost]
            self._claims.submit(self._forget, keys)

    def _forget(self, keys: list[tuple[str, int]]) -> None:
        message = "the call was cut off: its job was cancelled"
        try:
            with self.database.write() as connection:
                lost.forget_calls(connection, keys, "cancelled", message)
        except DatabaseError as error:
            self.outage.note(error)

    # the end

    def _begin_drain(self, grace_seconds: float) -> None:
        in_flight = len(self._kernel.board.calls)
        log.info("worker_stopping", in_flight=in_flight, grace_seconds=grace_seconds)
        _resolve(self._drain_begun)
        if self._shift is not None:
            self._shift.stop()
        self._loop.call_later(grace_seconds, self._begin_cut)

    def _begin_cut(self) -> None:
        if self._cutting is None:
            self._cutting = self._loop.create_task(self._cut())

    async def _cut(self) -> None:
        """Cut every call in flight and give its job back, unburnt.

        Whose answer has come is on the board no longer: it is recorded, as long as patience lasts.
        """
        self._loop.call_later(PATIENCE_SECONDS, self._lose_patience)
        cut = list(self._kernel.board.calls.values())
        for call in cut:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in cut), return_exceptions=True)
        await self._give_back([call.key for call in cut])

    def _lose_patience(self) -> None:
        self._recorder.give_up()
        _resolve(self._patience_over)

    async def _give_back(self, keys: Sequence[tuple[str, int]]) -> None:
        while keys and not self._patience_over.done():
            try:
                await self._in_sql(self._return, keys)
            except DatabaseError as error:
                self.outage.note(error)
                await asyncio.wait({self._patience_over}, timeout=OUTAGE_PAUSE_SECONDS)
            else:
                log.info("calls_given_back", count=len(keys))
                return
        if keys:
            log.warning("calls_left_to_lease", jobs=sorted(job_id for job_id, _ in keys))

    def _return(self, keys: Sequence[tuple[str, int]]) -> None:
        with self.database.write() as connection:
            lost.give_back(connection, self.worker_id, keys, self._settings.unknown_outcome)

    async def _finish(self) -> None:
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._cutting is not None:
            await self._cutting

    async def _retire(self) -> None:
        """End the lease, so that nobody waits for it to run out; close the connections."""
        self._loop.call_later(CLOSE_SECONDS, self._lose_patience)
        try:
            await self._in_sql(self._end_lease)
        except DatabaseError as error:
            self.outage.note(error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._upstream.aclose(), CLOSE_SECONDS)

    def _end_lease(self) -> None:
        with self.database.write() as connection:
            leases.retire_worker(connection, self.worker_id)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _shelf(settings: Settings) -> Shelf:
    url = settings.shared_redis_url
    return OwnShelf() if url is None else SharedShelf(url, settings.queue_prefix)


def _caps(settings: Settings) -> Caps:
    return Caps(settings.requests_per_minute, settings.tokens_per_minute)
