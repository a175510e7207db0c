"""Which lane gets how many of the free slots: pure policy.

Of the lanes of the highest priority, those with the fewest calls in flight are served first, up to
equality; so a small batch handed in behind a huge one has half of the slots at once.
"""

import heapq
from collections.abc import Mapping, Sequence

from worker.store.claims import Lane


def shares(lanes: Sequence[Lane], in_flight: Mapping[str, int], free: int) -> dict[str, int]:
    """Divide `free` slots between lanes, given the calls each has in flight here.

    Only the lanes of the highest priority present take part: the next ones are served when those
    have nothing left to claim.
    """
    if not lanes or free <= 0:
        return {}
    top = max(lane.priority for lane in lanes)
    level = [(in_flight.get(lane.key, 0), lane.key) for lane in lanes if lane.priority == top]
    heapq.heapify(level)
    given = dict.fromkeys((key for _, key in level), 0)
    for _ in range(free):
        taken, key = level[0]
        given[key] += 1
        heapq.heapreplace(level, (taken + 1, key))
    return {key: count for key, count in given.items() if count}
