"""Claiming: which lanes get how many of the free slots, and where their calls go.

Three steps: look at the lanes with work and at the pauses (SQL), take leave at the gate for as many
calls as fairness gives each lane, claim that many (SQL). What is held by a limit, a pause or a
broken endpoint is not claimed at all: it holds no slot and burns nothing. Runs in the threads for
SQL, never on the event loop.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.execution.board import Board
from worker.execution.fairness import shares
from worker.execution.routes import Assignment, Routes
from worker.gate.gate import Ask, Gate, Target
from worker.jobs.queues import BULK, INTERACTIVE
from worker.store import claims, lanes, pauses
from worker.store.claims import Claimed
from worker.store.engine import Database, Transaction
from worker.store.lanes import Lane
from worker.store.pauses import Pause

IMAGES_AT_ONCE: Final = 20
"""The most jobs of one lane and one claim, where requests hold images."""


@dataclass(frozen=True, slots=True)
class Haul:
    """What a claim brought. `wait_seconds`: until more may be there; None: nobody knows of any."""

    assignments: Sequence[Assignment] = ()
    wait_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Leave:
    """Leave to claim so many of a lane.

    `probe`: the paused key that the one call would try. `fresh_first`: the call is to try an
    endpoint, which a job that fails everywhere could not tell of.
    """

    lane: Lane
    count: int
    targets: tuple[Target, ...]
    probe: str | None = None
    fresh_first: bool = False


@dataclass(slots=True)
class _Plan:
    """What may be claimed, and the waits of what may not."""

    leaves: list[_Leave]
    waits: list[float]

    @property
    def wait_seconds(self) -> float | None:
        return min(self.waits, default=None)


class Dispatch:
    """Claims jobs for one worker."""

    def __init__(  # noqa: PLR0913  # what a claim is composed of
        self,
        database: Database,
        worker_id: str,
        gate: Gate,
        routes: Routes,
        board: Board,
        *,
        deadline_seconds: float = 0.0,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._gate = gate
        self._routes = routes
        self._board = board
        self._deadline_seconds = deadline_seconds

    def claim(self, places: int) -> Haul:
        """Claim up to so many jobs, due ones and fair shares first. Raises DatabaseError."""
        with self._database.read() as connection:
            found = lanes.lanes_with_work(connection, BULK, INTERACTIVE)
            paused = _paused(connection)
        plan = self._plan(found, places, paused)
        return Haul(self._claim(plan.leaves), plan.wait_seconds)

    def claim_single(self, job_id: str) -> Haul:
        """Claim one job, whether due or not. Raises DatabaseError."""
        with self._database.read() as connection:
            lane = lanes.lane_of(connection, job_id)
            paused = _paused(connection)
        if lane is None:
            return Haul()
        plan = _Plan([], [])
        self._share_out([lane], 1, paused, plan)
        return Haul(self._claim(plan.leaves, job_id), plan.wait_seconds)

    def has_work(self) -> bool:
        """Whether a claim now would bring anything. Raises DatabaseError."""
        with self._database.read() as connection:
            found = lanes.lanes_with_work(connection, BULK, INTERACTIVE)
            paused = _paused(connection)
        claimable = [one for one in found if one.claimable]
        free = [targets for one in claimable if (targets := self._unpaused(one, paused))]
        asks = [Ask(targets, 1) for targets in free]
        if any(one.count for one in self._gate.look(asks, self._board.by_target)):
            return True
        held = [one for one in claimable if not self._unpaused(one, paused)]
        return any(self._probe(one, paused).probe_seconds <= 0 for one in held)

    def _plan(self, found: Sequence[Lane], places: int, paused: Mapping[str, Pause]) -> _Plan:
        plan = _Plan([], [])
        later = (one.due_seconds for one in found if not one.claimable)
        plan.waits += [wait for wait in later if wait is not None]
        self._share_out([one for one in found if one.claimable], places, paused, plan)
        return plan

    def _share_out(
        self, found: Sequence[Lane], places: int, paused: Mapping[str, Pause], plan: _Plan
    ) -> None:
        """Take leave for the free places; what one lane may not use goes to the others."""
        held = [one for one in found if not self._unpaused(one, paused)]
        places -= self._take_probes(held, places, paused, plan)
        open_ = {one.id: one for one in found if one not in held}
        in_flight = Counter(self._board.by_lane)
        by_target = Counter(self._board.by_target)
        while places > 0 and open_:
            wanted = shares(list(open_.values()), in_flight, places)
            asks = [
                Ask(self._unpaused(open_[one], paused), _at_once(open_[one], n))
                for one, n in wanted.items()
            ]
            for lane_id, grant in zip(wanted, self._gate.ask(asks, by_target), strict=True):
                lane = open_[lane_id]
                if grant.count < wanted[lane_id]:
                    del open_[lane_id]
                if not grant.count:
                    plan.waits.append(grant.wait_seconds)
                    continue
                plan.leaves.append(
                    _Leave(lane, grant.count, grant.targets, fresh_first=grant.is_probe)
                )
                places -= grant.count
                in_flight[lane_id] += grant.count
                by_target[grant.targets[0]] += grant.count

    def _take_probes(
        self, held: Sequence[Lane], places: int, paused: Mapping[str, Pause], plan: _Plan
    ) -> int:
        """Of the lanes whose keys are all paused, let one try each key that is due for it."""
        tried: set[str] = set()
        for lane in sorted(held, key=lambda one: -one.priority):
            pause = self._probe(lane, paused)
            due = pause.probe_seconds <= 0
            if not due or pause.key in tried or len(tried) >= places:
                plan.waits.append(max(pause.probe_seconds, pauses.AGAIN_SECONDS))
                continue
            targets = tuple(t for t in self._routes.targets(lane) if t.key == pause.key)
            (grant,) = self._gate.ask([Ask(targets, 1)], self._board.by_target)
            if grant.count:
                tried.add(pause.key)
                plan.leaves.append(_Leave(lane, 1, grant.targets, pause.key))
            else:
                plan.waits.append(grant.wait_seconds)
        return len(tried)

    def _unpaused(self, lane: Lane, paused: Mapping[str, Pause]) -> tuple[Target, ...]:
        return tuple(t for t in self._routes.targets(lane) if t.key not in paused)

    def _probe(self, lane: Lane, paused: Mapping[str, Pause]) -> Pause:
        """The pause that could be the first to end, of a lane whose keys are all paused."""
        own = {target.key for target in self._routes.targets(lane)}
        return min((paused[key] for key in own), key=lambda one: one.probe_seconds)

    def _claim(self, leaves: Sequence[_Leave], job_id: str | None = None) -> list[Assignment]:
        """Claim what there is leave for; give back the leave that finds no job."""
        unused: Counter[Target] = Counter()
        for one in leaves:
            unused[one.targets[0]] += one.count
        assignments: list[Assignment] = []
        try:
            if leaves:
                with self._database.write() as connection:
                    for one in leaves:
                        assignments += self._claim_leave(connection, one, job_id)
        except BaseException:
            self._gate.settle(unused)
            raise
        for assignment in assignments:
            unused[assignment.target] -= 1
        self._gate.settle(unused)
        return assignments

    def _claim_leave(
        self, connection: Transaction, leave: _Leave, job_id: str | None
    ) -> list[Assignment]:
        if leave.probe is not None and not pauses.take_probe(connection, leave.probe):
            return []  # another worker was first
        targets: dict[str, Target] = {}
        everywhere = self._routes.targets(leave.lane)

        def to(claimed: Claimed) -> str:
            target = _next_target(everywhere, leave.targets, claimed.diverts)
            targets[claimed.id] = target
            return target.endpoint

        if job_id is None:
            found = claims.claim_lane(
                connection,
                self._worker_id,
                leave.lane,
                leave.count,
                to,
                fresh_first=leave.fresh_first,
                deadline_seconds=self._deadline_seconds,
            )
        else:
            one = claims.claim_one(
                connection, self._worker_id, job_id, to, deadline_seconds=self._deadline_seconds
            )
            found = [] if one is None else [one]
        probing = leave.probe is not None
        return [Assignment(one, targets[one.id], len(everywhere), probing) for one in found]


def _next_target(everywhere: Sequence[Target], open_: Sequence[Target], diverts: int) -> Target:
    """Choose where a job's call goes: each diversion so far moved it on by one, past the closed."""
    start = diverts % len(everywhere)
    order = (*everywhere[start:], *everywhere[:start])
    return next(target for target in order if target in open_)


def _at_once(lane: Lane, wanted: int) -> int:
    """How many to claim at once: images are read with their jobs, and may be large."""
    return min(wanted, IMAGES_AT_ONCE) if lane.multimodal else wanted


def _paused(connection: Transaction) -> dict[str, Pause]:
    return {one.key: one for one in pauses.active(connection)}
