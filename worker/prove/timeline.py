"""A timeline: acts at their moments, one after the other, in one thread."""

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count


@dataclass(order=True, slots=True)
class _Due:
    at: float
    order: int
    act: Callable[[], None] = field(compare=False)


class Timeline:
    """Acts by the clock that `now` reads; an act may put further ones on it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: list[_Due] = []
        self._order = count()
        self._stopped = threading.Event()

    def at(self, moment: float, act: Callable[[], None]) -> None:
        """Put an act at a moment."""
        heapq.heappush(self._due, _Due(moment, next(self._order), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Put an act so long after now."""
        self.at(self._now() + seconds, act)

    def run(self) -> None:
        """Do all of it, each as soon as its moment has come."""
        while self._due:
            due = heapq.heappop(self._due)
            if self._stopped.wait(max(0.0, due.at - self._now())):
                return
            due.act()

    def stop(self) -> None:
        """Have `run` end before the next act; from any thread."""
        self._stopped.set()
