"""Identifiers: a prefix and 32 hex digits that sort by the order of their making.

Twelve digits of milliseconds, six of a counter, fourteen at random. Within a process every id is
greater than the one before, even when the clock steps back; so the jobs of one file sort by line.
"""

import hashlib
import json
import os
import threading
import time

_COUNTER_LIMIT = 1 << 24


class _Sequence:
    """Hands out (milliseconds, counter) pairs that only grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millisecond = 0
        self._counter = 0

    def next(self) -> tuple[int, int]:
        with self._lock:
            now = time.time_ns() // 1_000_000
            if now > self._millisecond:
                self._millisecond, self._counter = now, 0
            else:
                self._counter += 1
                if self._counter == _COUNTER_LIMIT:
                    self._millisecond, self._counter = self._millisecond + 1, 0
            return self._millisecond, self._counter


_sequence = _Sequence()


def new_id(prefix: str) -> str:
    """Return a new id such as `job_019a8c2f41d0000000…`."""
    millisecond, counter = _sequence.next()
    return f"{prefix}_{millisecond:012x}{counter:06x}{os.urandom(7).hex()}"


def lane_id(*kind: str | int | bool | None) -> str:
    """Return the id of the lane of jobs of this kind: always the same one.

    `kind`: batch, queue, priority, model, multimodal, and the endpoints that the jobs name.
    """
    return f"lane_{hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:32]}"
