"""How many calls a process may have in flight. Belongs to the event loop."""

import asyncio
import contextlib
from typing import Final

GATHERED_SHARE: Final = 50
"""One part in so many of the places is worth a claim of its own."""


class Slots:
    """A count of free places, taken many at a time by shifts."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._freed = asyncio.Event()
        self._enough = 1
        self._freed.set()

    @property
    def free(self) -> int:
        """Places not taken."""
        return self._free

    @property
    def taken(self) -> int:
        """Calls that hold a place."""
        return self.capacity - self._free

    def take(self, wanted: int) -> int:
        """Take up to `wanted` places; return how many there were."""
        taken = min(wanted, self._free)
        self._free -= taken
        if not self._free:
            self._freed.clear()
        return taken

    def give(self, count: int = 1) -> None:
        """Give places back."""
        self._free += count
        if self._free >= self._enough:
            self._freed.set()

    async def wait_free(self, gather_seconds: float = 0.0) -> None:
        """Wait until places are free; with time to gather, until there are some at once.

        Some is a fiftieth of the capacity: so few idle places are not missed, and whoever fills
        them pays once for many. They may be gone for whoever does not take them at once.
        """
        self._enough = max(1, self.capacity // GATHERED_SHARE)
        if self._free < self._enough:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), gather_seconds)
        self._enough = 1
        if self._free:
            return
        self._freed.clear()
        await self._freed.wait()
