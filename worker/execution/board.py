"""What a process has in flight. Belongs to the event loop; the counts may be read from anywhere."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from worker.execution.routes import Assignment
from worker.gate.gate import Target
from worker.store.records import Record

SEEN_SENT_SECONDS: Final = 1.0
"""A call older than this is noted as sent; a younger one that is lost counts as maybe sent too."""


@dataclass(slots=True)
class Call:
    """A call in flight."""

    assignment: Assignment
    started: float
    task: "asyncio.Task[Record | None]"
    noted_sent: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What its row in the ledger is found by: the job's id, and the fence."""
        return self.assignment.key


@dataclass(slots=True)
class Board:
    """The calls in flight, by job id and fence; and how many of each lane, and to each target."""

    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    by_lane: Counter[str] = field(default_factory=Counter)
    by_target: Counter[Target] = field(default_factory=Counter)

    def add(self, call: Call) -> None:
        """Put a call on the board."""
        assignment = call.assignment
        self.calls[call.key] = call
        self.by_lane[assignment.claimed.lane_id] += 1
        self.by_target[assignment.target] += 1

    def remove(self, assignment: Assignment) -> None:
        """Take it off, if it is still there."""
        if self.calls.pop(assignment.key, None) is not None:
            self.by_lane[assignment.claimed.lane_id] -= 1
            self.by_target[assignment.target] -= 1

    def newly_sent(self) -> list[tuple[str, int]]:
        """List (job id, fence) of the calls in flight for a while that were not listed before."""
        long_ago = time.monotonic() - SEEN_SENT_SECONDS
        fresh = [c for c in self.calls.values() if not c.noted_sent and c.started < long_ago]
        for call in fresh:
            call.noted_sent = True
        return [call.key for call in fresh]
