"""What a supervisor is told from outside, in one place to wait at: signals, deaths, its lifeline.

Called by the supervisor only, in its main thread. Handlers do nothing but count, and each signal
wakes the waiter: nothing is polled to learn of it. Never decides what a notice means.
"""

import os
import select
import signal
from contextlib import ExitStack, suppress
from time import monotonic
from types import FrameType
from typing import Final, Self

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Notices:
    """Signals and the lifeline, from `with` to its end; what was set before is set again then.

    `requests` counts the signals that ask to stop, `lost` says that the starter is gone, and
    `hurried_at` is the monotonic time of the second request.
    """

    def __init__(self, lifeline_fd: int | None) -> None:
        self.requests = 0
        self.lost = False
        self.hurried_at: float | None = None
        self._lifeline_fd = lifeline_fd
        self._wake_fd = -1
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._wake_fd, wake_write = os.pipe()
            undo.callback(os.close, self._wake_fd)
            undo.callback(os.close, wake_write)
            for fd in (self._wake_fd, wake_write):
                os.set_blocking(fd, False)  # the only form it has
            previous = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
            undo.callback(signal.set_wakeup_fd, previous)
            for number in _STOPPING:
                undo.callback(signal.signal, number, signal.signal(number, self._on_request))
            undo.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, _on_death))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def wait(self, seconds: float) -> None:
        """Return at the first notice, or after so many seconds."""
        fds = [self._wake_fd]
        if self._lifeline_fd is not None:
            fds.append(self._lifeline_fd)
        readable, _, _ = select.select(fds, [], [], seconds)
        if self._wake_fd in readable:
            with suppress(BlockingIOError):
                os.read(self._wake_fd, 1024)
        if self._lifeline_fd in readable:
            self._read_lifeline(self._lifeline_fd)

    def _read_lifeline(self, fd: int | None) -> None:
        if fd is not None and not os.read(fd, 64):
            os.close(fd)
            self._lifeline_fd = None
            self.lost = True

    def _on_request(self, _number: int, _frame: FrameType | None) -> None:
        self.requests += 1
        if self.requests == 2:
            self.hurried_at = monotonic()


def _on_death(_number: int, _frame: FrameType | None) -> None:
    """Wake the waiter: Python writes to the wake-up pipe only for signals that have a handler."""
