"""Looking on: how far the work is, sampled all the time, and how long each recovery took.

A thread that reads the scratch database directly, whatever becomes of the workers' way to it.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from worker.errors import DatabaseError
from worker.store.engine import Database
from worker.store.scratch import Loss, Progress, read_progress

EVERY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """How far the work was, `at` seconds after the start."""

    at: float
    progress: Progress


class Watch:
    """Takes samples for the time of a `with`, the last one at its end."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    @property
    def done(self) -> int:
        """Jobs that had ended at the last look."""
        return self.samples[-1].progress.done if self.samples else 0

    def losses(self) -> Iterator[tuple[float, Loss]]:
        """Give each call that was lost, with the moment at which that was seen."""
        for sample in self.samples:
            yield from ((sample.at, loss) for loss in sample.progress.losses)

    def _look(self) -> None:
        last = max((loss.number for _, loss in self.losses()), default=0)
        self.samples.append(Sample(self._now(), read_progress(self._database, last)))

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            # A busy database is no matter: the next look will tell.
            with suppress(DatabaseError):
                self._look()


def recovery_seconds(
    samples: Sequence[Sample], since: float, dead: Collection[int] = ()
) -> float | None:
    """Seconds from a trouble's end until a job ended again, and nothing was held by the dead.

    `dead` are the numbers of the processes that were killed by it. None where no work was left by
    which it could be seen.
    """
    before = max((one.progress.done for one in samples if one.at <= since), default=0)
    after = [one for one in samples if one.at > since]
    goes_on = next((one.at for one in after if one.progress.done > before), None)
    if goes_on is None:
        return None
    held = [one.at for one in after if any(one.progress.held.get(pid) for pid in dead)]
    return max(goes_on, *held, since) - since
