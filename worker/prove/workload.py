"""The work of a proof: batches and single jobs handed in, one batch cancelled, as the plan says.

In a thread of its own beside the turmoil: a database that is kept locked keeps it waiting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from worker.client import Client
from worker.jobs.queues import BULK
from worker.prove.plan import Handover
from worker.prove.timeline import Timeline
from worker.store.submission import NewBatch


@dataclass(slots=True)
class HandedIn:
    """A batch that was handed in."""

    id: str
    custom_ids: tuple[str, ...]
    was_cancelled: bool = False


class Workload:
    """`batches` and `singles` (ids) are what was handed in so far."""

    def __init__(
        self, client: Client, now: Callable[[], float], tell: Callable[[str], None]
    ) -> None:
        self._client = client
        self._tell = tell
        self._timeline = Timeline(now)
        self.batches: list[HandedIn] = []
        self.singles: list[str] = []

    def run(self, handovers: Sequence[Handover]) -> None:
        """Hand in all of it, each at its moment."""
        for one in handovers:
            self._timeline.at(one.at, partial(self._hand_in, one))
        self._timeline.run()

    def stop(self) -> None:
        """Hand in no more; from any thread."""
        self._timeline.stop()

    def _hand_in(self, one: Handover) -> None:
        if one.name is None:
            self.singles += [self._client.submit(body).id for body in one.bodies]
            return
        submitted = self._client.submit_lines(one.lines(), NewBatch(one.name, BULK))
        handed = HandedIn(submitted.batch_id, one.custom_ids)
        self.batches.append(handed)
        self._tell(f"{one.name}: {len(one.bodies)} jobs handed in")
        if one.cancel_after is not None:
            self._timeline.after(one.cancel_after, partial(self._cancel, one, handed))

    def _cancel(self, one: Handover, handed: HandedIn) -> None:
        handed.was_cancelled = True
        self._tell(f"{one.name} cancelled: {self._client.cancel(handed.id)} jobs")
