"""How many calls a process may have in flight. Belongs to the event loop."""

import asyncio


class Slots:
    """A count of free places, taken many at a time by shifts."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._freed = asyncio.Event()
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
        if self._free:
            self._freed.set()

    async def wait_free(self) -> None:
        """Wait until a place is free; it may be gone again for whoever does not take it at once."""
        await self._freed.wait()
