"""The composition root of a worker process: built once, lazily, and the door for Celery's tasks.

One thread runs the event loop that holds every call; SQL runs in a few others. The tasks of
`worker.queue` call in from threads of their own and wait.
"""

import asyncio
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
from worker.execution.board import Call
from worker.execution.dispatch import Dispatch, Haul
from worker.execution.kernel import Kernel
from worker.execution.outage import Outage
from worker.execution.recorder import Recorder
from worker.execution.routes import Routes
from worker.execution.shift import SOON_SECONDS, Quota, Shift, ShiftReport
from worker.execution.slots import Slots
from worker.execution.tidings import Tidings
from worker.gate.gate import Gate, Report
from worker.gate.meter import Caps
from worker.gate.shelf import OwnShelf, SharedShelf, Shelf
from worker.jobs.queues import BULK, INTERACTIVE
from worker.jobs.shaping import Streaming
from worker.jobs.states import State
from worker.retry import RetryPolicy
from worker.settings import Settings
from worker.store import claims, leases, queries, schema, submission
from worker.store.engine import Database
from worker.store.records import mark_sent
from worker.upstream.client import Timeouts, Upstream

log = structlog.get_logger(__name__)

ABANDONED_SECONDS: Final = 6 * 3600.0
"""A submission that has not ended after this long has died."""

T = TypeVar("T")


class Runtime:
    """Everything a worker process runs on. Its methods may be called from any thread.

    `ring` invites this worker to its next shift.
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
            self.database, self.worker_id, self._gate, Routes(settings), self._kernel.board
        )
        self._shift: Shift | None = None
        self._stopping = False
        self._cutting: asyncio.Task[None] | None = None
        self._thread.start()

    # --- what Celery's tasks call ---------------------------------------------------------------

    def run_shift(self) -> ShiftReport | None:
        """Run a shift and wait for its end; None where one is on already (it is told to look)."""
        return self._wait(self._run_shift())

    def run_single(self, job_id: str) -> State | None:
        """Run one job and wait for it; return the state it is left in, None if there is no such."""
        return self._wait(self._run_single(job_id))

    # --- the sweep ------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Do what is due each second: renew the lease, take over, let go, and see to a shift.

        Raises DatabaseError.
        """
        began = time.monotonic()
        with self.database.write() as connection:
            leases.heartbeat(connection, self.worker_id, self._settings.lease_seconds)
            rescued = claims.rescue(
                connection, self._settings.max_attempts, repeat=self._settings.repeats_unknown
            )
            fresh = self._kernel.board.newly_sent()
            if fresh:
                mark_sent(connection, fresh)
            held = leases.still_held(connection, self.worker_id) if self._busy else {}
        self.outage.over()
        if rescued:
            log.warning("jobs_rescued", count=rescued)
        self._loop.call_soon_threadsafe(self._let_go, held, began)
        if self._shift is None and not self._stopping and self._dispatch.has_work():
            self._ring()

    def clean(self) -> None:
        """Remove what dead submissions left. Raises DatabaseError."""
        with self.database.read() as connection:
            abandoned = submission.abandoned_batches(connection, ABANDONED_SECONDS)
        for batch_id in abandoned:
            submission.drop_batch(self.database, batch_id)

    @property
    def in_flight(self) -> int:
        """Calls in flight now."""
        return len(self._kernel.board.calls)

    # --- the end --------------------------------------------------------------------------------

    def drain(self, grace_seconds: float) -> None:
        """Claim no more, and cut what is still in flight after the grace. Returns at once."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._begin_drain, grace_seconds)

    def close(self) -> None:
        """Stop: record what is known, give back what is held, end the lease."""
        self._stopping = True
        self._wait(self._cut())
        self._recorder.close()
        try:
            with self.database.write() as connection:
                leases.retire_worker(connection, self.worker_id)
        except DatabaseError as error:
            self.outage.note(error)
        self._wait(self._upstream.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._claims.shutdown()
        self.database.close()

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

    async def _in_sql(self, work: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(self._claims, work, *args)

    def _tell(self, reports: Sequence[Report]) -> None:
        self._gate.tell(reports, Counter(self._kernel.board.by_target))

    @property
    def _busy(self) -> bool:
        return bool(self._kernel.board.calls)

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
            lambda places: self._in_sql(self._dispatch.claim, places),
            Quota(self._settings.shift_jobs, self._settings.shift_seconds),
            self.outage,
        )
        try:
            await shift.claim_all()
        finally:
            self._shift = None
        if shift.report.handed_over and not self._stopping:
            await self._in_sql(self._ring)
        return await shift.see_off()

    # single jobs

    async def _run_single(self, job_id: str) -> State | None:
        while not self._stopping:
            wait = await self._run_once(job_id)
            if wait is None or wait > SOON_SECONDS:
                break
            await asyncio.sleep(wait)
        return await self._in_sql(self._state, job_id)

    async def _run_once(self, job_id: str) -> float | None:
        """Call once for a job; return how long until it may be tried again, None if it is over."""
        slots = self._slots[INTERACTIVE]
        while not slots.take(1):
            await slots.wait_free()
        haul = Haul()
        try:
            haul = await self._in_sql(self._dispatch.claim_single, job_id)
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
                claims.forget_calls(connection, keys, "cancelled", message)
        except DatabaseError as error:
            self.outage.note(error)

    def _begin_drain(self, grace_seconds: float) -> None:
        if self._shift is not None:
            self._shift.stop()
        self._loop.call_later(grace_seconds, self._begin_cut)

    def _begin_cut(self) -> None:
        self._cutting = self._loop.create_task(self._cut())

    async def _cut(self) -> None:
        """Cut every call in flight and give its job back, unburnt."""
        if self._shift is not None:
            self._shift.stop()
        cut = list(self._kernel.board.calls.values())
        for call in cut:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in cut), return_exceptions=True)
        if cut:
            await self._in_sql(self._give_back, cut)
            log.info("calls_given_back", count=len(cut))

    def _give_back(self, cut: list[Call]) -> None:
        keys = [call.key for call in cut]
        try:
            with self.database.write() as connection:
                claims.give_back(
                    connection, self.worker_id, keys, repeat=self._settings.repeats_unknown
                )
        except DatabaseError as error:
            # Their lease ends with this worker's: another one takes them over then.
            self.outage.note(error)


def _shelf(settings: Settings) -> Shelf:
    url = settings.shared_redis_url
    return OwnShelf() if url is None else SharedShelf(url)


def _caps(settings: Settings) -> Caps:
    return Caps(settings.requests_per_minute, settings.tokens_per_minute)
