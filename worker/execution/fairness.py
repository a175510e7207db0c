"""Which lane gets how many of the free slots: pure policy.

Of the batches of the highest priority (the single jobs count as one), those with the fewest calls
in flight are served first, up to equality; so a small batch handed in behind a huge one has half of
the slots at once. Within a batch the same holds for its lanes.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

from worker.store.lanes import Lane


def shares(lanes: Sequence[Lane], in_flight: Mapping[str, int], free: int) -> dict[str, int]:
    """Divide `free` slots between lanes, by id, given the calls each has in flight here.

    Only the lanes of the highest priority present take part: the next ones are served when those
    have nothing left to claim.
    """
    if not lanes or free <= 0:
        return {}
    top = max(lane.priority for lane in lanes)
    batches: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for lane in lanes:
        if lane.priority == top:
            batches[lane.batch_id].append((in_flight.get(lane.id, 0), lane.id))
    level = [(sum(n for n, _ in own), batch_id) for batch_id, own in batches.items()]
    for heap in (level, *batches.values()):
        heapq.heapify(heap)
    given: defaultdict[str, int] = defaultdict(int)
    for _ in range(free):
        given[_serve(batches[_serve(level)])] += 1
    return dict(given)


def _serve(heap: list[tuple[int, str]]) -> str:
    """Give one more to whoever has the fewest; return who that is."""
    taken, key = heap[0]
    heapq.heapreplace(heap, (taken + 1, key))
    return key
