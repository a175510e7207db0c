"""Signals: what asks a worker process to stop, and to stop at once.

Celery's own answer to a second signal fails with the threads pool, so its handlers are replaced.
"""

import queue
import signal
import threading
from types import FrameType
from typing import Final, Protocol

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Stop(Protocol):
    """What is called for a signal."""

    def __call__(self, *, at_once: bool) -> None:
        """Stop; `at_once`: without waiting for the calls in flight."""
        ...


class Signals:
    """Takes signals down as they come, and has them seen to in a thread.

    A handler interrupts whatever the main thread does, even where that holds a lock, so it only
    calls what is made for it: the `put` of a simple queue.
    """

    def __init__(self) -> None:
        self._come: queue.SimpleQueue[int] = queue.SimpleQueue()

    def install(self) -> None:
        """Take the signals over from whoever has them. In the main thread only."""
        for number in SIGNALS:
            signal.signal(number, self._put)

    def see_to(self, stop: Stop) -> None:
        """Call `stop` for each signal, those that came before this included.

        `at_once` is true of a SIGQUIT and of every signal but the first.
        """
        threading.Thread(target=self._run, args=(stop,), name="signals", daemon=True).start()

    def _put(self, number: int, _frame: FrameType | None) -> None:
        self._come.put(number)

    def _run(self, stop: Stop) -> None:
        stop(at_once=self._come.get() == signal.SIGQUIT)
        while True:
            self._come.get()
            stop(at_once=True)
