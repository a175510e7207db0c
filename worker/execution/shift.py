"""A shift: claims jobs as slots come free, until its quota or the backlog ends.

Then it sees off its own tail while the next shift is already claiming. Belongs to the event loop.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from worker.errors import DatabaseError
from worker.execution.dispatch import Haul
from worker.execution.kernel import Kernel
from worker.execution.outage import Outage
from worker.execution.routes import Assignment
from worker.execution.slots import Slots
from worker.jobs.states import State
from worker.store.records import Record

CLAIM_LIMIT: Final = 100
"""The most jobs of one claim: while they are begun, the next ones are being claimed."""

GATHER_SECONDS: Final = 0.2
"""How long freed slots may gather: a claim costs about the same for one or many."""

SOON_SECONDS: Final = 30.0
"""A shift stays for a waiting job that is due within this time."""

HELD_SECONDS: Final = 0.1
"""How soon at the soonest a shift looks again after it could claim nothing."""

OUTAGE_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Quota:
    """When a shift hands over to the next: after so many jobs, or seconds of claiming."""

    jobs: int
    seconds: float


@dataclass(slots=True)
class ShiftReport:
    """What a shift did. `handed_over`: it ended by its quota, with work left."""

    claimed: int = 0
    succeeded: int = 0
    failed: int = 0
    put_off: int = 0
    seconds: float = 0.0
    handed_over: bool = False

    def count(self, record: Record | None) -> None:
        """Add what one call came to; None: the job was taken from us meanwhile."""
        match record.state if record else None:
            case State.SUCCEEDED:
                self.succeeded += 1
            case State.FAILED:
                self.failed += 1
            case _:
                self.put_off += 1

    def __str__(self) -> str:
        parts = [f"{self.succeeded} done"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.put_off} put off"] if self.put_off else []
        return f"{', '.join(parts)} in {self.seconds:.1f} s"


ClaimUpTo = Callable[[int], Awaitable[Haul]]
"""Claims up to so many jobs. Raises DatabaseError."""


class Shift:
    """One shift. `poke` tells it that there may be new work; `stop` that it must claim no more."""

    def __init__(
        self, kernel: Kernel, slots: Slots, claim: ClaimUpTo, quota: Quota, outage: Outage
    ) -> None:
        self._kernel = kernel
        self._slots = slots
        self._claim = claim
        self._quota = quota
        self._outage = outage
        self._poked = asyncio.Event()
        self._stopped = False
        self._running: set[asyncio.Task[Record | None]] = set()
        self._started = time.monotonic()
        self.report = ShiftReport()

    def poke(self) -> None:
        """Say that there may be new work."""
        self._poked.set()

    def stop(self) -> None:
        """Claim no more; what is in flight goes on."""
        self._stopped = True
        self._poked.set()

    async def claim_all(self) -> None:
        """Keep the slots filled until the quota or the backlog ends, or `stop`."""
        while not self._stopped:
            if self._quota_used():
                self.report.handed_over = True
                return
            await self._slots.wait_free(GATHER_SECONDS)
            self._poked.clear()
            haul = await self._fill()
            if not haul.assignments and not await self._more_to_come(haul.wait_seconds):
                return

    async def see_off(self) -> ShiftReport:
        """Wait for the shift's own calls."""
        while self._running:
            await asyncio.wait(self._running)
        self.report.seconds = time.monotonic() - self._started
        return self.report

    def _quota_used(self) -> bool:
        return (
            self.report.claimed >= self._quota.jobs
            or time.monotonic() - self._started >= self._quota.seconds
        )

    async def _fill(self) -> Haul:
        """Claim jobs for the free slots and begin them."""
        places = self._slots.take(min(CLAIM_LIMIT, self._quota.jobs - self.report.claimed))
        haul = Haul()
        try:
            haul = await self._claim(places)
        except DatabaseError as error:
            self._outage.note(error)
            haul = Haul(wait_seconds=OUTAGE_PAUSE_SECONDS)
        finally:
            self._slots.give(places - len(haul.assignments))
        for one in haul.assignments:
            self._begin(one)
        return haul

    def _begin(self, assignment: Assignment) -> None:
        task = self._kernel.start(assignment, self._slots.give)
        self._running.add(task)
        task.add_done_callback(self._ended)
        self.report.claimed += 1

    def _ended(self, task: "asyncio.Task[Record | None]") -> None:
        self._running.discard(task)
        record = None if task.cancelled() else task.result()
        self.report.count(record)
        if not self._running or (record and record.state is State.WAITING):
            self._poked.set()

    async def _more_to_come(self, wait_seconds: float | None) -> bool:
        """With nothing to claim now: wait for what may come; False if nothing will come soon."""
        soon = wait_seconds is not None and wait_seconds <= SOON_SECONDS
        if not soon and not self._running:
            return self._poked.is_set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._poked.wait(), _spread(wait_seconds if soon else None))
        return True


def _spread(wait_seconds: float | None) -> float:
    """How long to wait: never a mere instant, and not all workers for the same time."""
    if wait_seconds is None:
        return SOON_SECONDS
    return max(wait_seconds, HELD_SECONDS) * random.uniform(1.0, 1.2)  # noqa: S311  # no secret
