"""The turmoil: makes the troubles of a plan, each at its moment.

Runs in the thread of `worker.prove.scenario`. Every act is short; what lasts is begun at one moment
and ended at a later one, so troubles overlap as they would.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from worker.client import Client
from worker.errors import BrokerError, DatabaseError, StackError
from worker.prove.places import BrokerPlace, Place
from worker.prove.plan import Event, Trouble
from worker.prove.staff import SimulatorProcess, Staff
from worker.prove.timeline import Timeline
from worker.queue.bell import Bell
from worker.store.scratch import move_time

AGAIN_SECONDS: Final = 0.2
REPEATED: Final = 20
"""Jobs whose messages are repeated at a time."""

_STORM: Final = {"fail_rate": 0.8, "faults": ("429",)}
_CUTS: Final = {"fail_rate": 0.4, "faults": ("cut_stream", "cut_stream_abrupt", "reset")}
_CALM: Final = {"fail_rate": 0.0}


@dataclass(slots=True)
class Happening:
    """An event that took place: when it was over, and which processes it killed."""

    event: Event
    over_at: float
    killed: tuple[int, ...] = ()


@dataclass(slots=True)
class Stage:
    """Everything that the turmoil acts upon."""

    staff: Staff
    simulator: SimulatorProcess
    database: Place
    broker: BrokerPlace
    client: Client
    bell: Bell
    now: Callable[[], float]


class Turmoil:
    """One run of a plan's troubles; `happenings` are those that took place.

    `tell` is called with a line for each.
    """

    def __init__(self, stage: Stage, seed: int, tell: Callable[[str], None]) -> None:
        self._stage = stage
        self._tell = tell
        self._dice = random.Random(seed)  # noqa: S311  # repeatable, guards nothing
        self._timeline = Timeline(stage.now)
        self._weather: list[dict[str, object]] = []
        self._awaited: set[int] = set()
        self.happenings: list[Happening] = []

    def run(self, events: Sequence[Event]) -> None:
        """Make the trouble, to the end of the last of it."""
        for event in events:
            self._timeline.at(event.at, partial(self._begin, event))
        self._look_after(events[-1].at)
        self._timeline.run()

    def _begin(self, event: Event) -> None:
        acts: dict[Trouble, Callable[[Event], None]] = {
            Trouble.KILL: lambda one: self._kill(one, 1),
            Trouble.KILL_TWO: lambda one: self._kill(one, 2),
            Trouble.STOP: self._stop,
            Trouble.FREEZE: self._freeze,
            Trouble.BROKER_DOWN: lambda one: self._away(one, self._stage.broker),
            Trouble.DATABASE_AWAY: lambda one: self._away(one, self._stage.database),
            Trouble.BROKER_EMPTIED: self._empty,
            Trouble.DUPLICATES: self._repeat,
            Trouble.RATE_LIMIT: lambda one: self._spoil(one, _STORM),
            Trouble.CUT_STREAMS: lambda one: self._spoil(one, _CUTS),
            Trouble.CLOCK_JUMP: self._jump,
        }
        acts[event.kind](event)

    def _over(self, event: Event, killed: tuple[int, ...] = ()) -> None:
        self.happenings.append(Happening(event, self._stage.now(), killed))

    def _struck(self, event: Event, number: int) -> list[int]:
        """Choose the workers that it strikes; where none runs just now, it comes again later."""
        places = self._stage.staff.serving(event.workers, number)
        if not places:
            self._timeline.after(AGAIN_SECONDS, partial(self._begin, event))
        return places

    def _kill(self, event: Event, number: int) -> None:
        places = self._struck(event, number)
        killed = tuple(self._stage.staff.kill(place) for place in places)
        if killed:
            self._tell(f"{event.kind}: {_named(places)}")
            self._over(event, killed)
        self._awaited.update(places)
        for place in places:
            self._timeline.after(event.seconds, partial(self._restart, place))

    def _stop(self, event: Event) -> None:
        for place in self._struck(event, 1):
            self._stage.staff.stop(place)
            self._tell(f"{event.kind}: {_named([place])}")
            self._over(event)
            self._awaited.add(place)
            self._timeline.after(event.seconds, partial(self._restart, place))

    def _restart(self, place: int) -> None:
        """Start a worker anew, once the one before it has ended."""
        if self._stage.staff.tend(place):
            self._awaited.discard(place)
            self._stage.staff.start(place)
        else:
            self._timeline.after(AGAIN_SECONDS, partial(self._restart, place))

    def _look_after(self, until: float) -> None:
        """See to the workers, again and again."""
        self._stage.staff.look_after(self._awaited)
        if self._stage.now() < until:
            self._timeline.after(AGAIN_SECONDS, partial(self._look_after, until))

    def _freeze(self, event: Event) -> None:
        for place in self._struck(event, 1):
            self._stage.staff.freeze(place)
            self._tell(f"{event.kind}: {_named([place])} for {event.seconds:.1f} s")
            self._timeline.after(event.seconds, partial(self._thaw, event, place))

    def _thaw(self, event: Event, place: int) -> None:
        self._stage.staff.thaw(place)
        self._over(event)

    def _away(self, event: Event, place: Place) -> None:
        place.go_away()
        self._tell(f"{event.kind} for {event.seconds:.1f} s")
        self._timeline.after(event.seconds, lambda: self._back(event, place))

    def _back(self, event: Event, place: Place) -> None:
        place.come_back()
        self._over(event)

    def _empty(self, event: Event) -> None:
        try:
            self._stage.broker.empty()
            self._tell(f"{event.kind}")
            self._over(event)
        except (BrokerError, StackError):
            self._timeline.after(AGAIN_SECONDS, lambda: self._empty(event))  # it is down just now

    def _repeat(self, event: Event) -> None:
        """Send messages again, in any order, of jobs that wait, run, or have ended."""
        jobs = [job.id for job in self._stage.client.jobs(limit=10 * REPEATED)]
        chosen = self._dice.sample(jobs, k=min(REPEATED, len(jobs))) * 2
        self._dice.shuffle(chosen)
        sent = sum(self._stage.bell.ring_job(one) for one in chosen)
        sent += sum(self._stage.bell.ring_shift() for _ in range(REPEATED))
        self._tell(f"{event.kind}: {sent} messages")
        self._over(event)

    def _spoil(self, event: Event, how: dict[str, object]) -> None:
        self._weather.append(how)
        self._stage.simulator.behave(**how)
        self._tell(f"{event.kind} for {event.seconds:.1f} s")
        self._timeline.after(event.seconds, lambda: self._clear(event, how))

    def _clear(self, event: Event, how: dict[str, object]) -> None:
        self._weather.remove(how)
        self._stage.simulator.behave(**(self._weather[-1] if self._weather else _CALM))
        self._over(event)

    def _jump(self, event: Event) -> None:
        try:
            # Times that are moved back look as they would to a clock that has gone forward.
            move_time(self._stage.client.database, -event.jump_seconds)
        except DatabaseError:
            self._timeline.after(AGAIN_SECONDS, lambda: self._jump(event))
            return
        self._tell(f"{event.kind} of {event.jump_seconds:+.0f} s")
        self._over(event)


def _named(places: list[int]) -> str:
    return " and ".join(f"worker {place + 1}" for place in places)
