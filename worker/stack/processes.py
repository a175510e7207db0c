"""Processes of the stack: started in sessions of their own, known by pid and start time.

Called by the supervisor for what it starts, and by whoever clears up after a killed one. Never
signals a process by its number alone unless it is a child not yet waited for: numbers come again.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Self

import psutil

from worker.stack.home import Home
from worker.stack.parts import Part

# psutil computes a start time from the boot time, which the kernel may round another way later.
_SAME_START_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that is not confused with a later one of the same number."""

    pid: int
    created_at: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Identify a process. One that has ended already is never found again."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return cls(pid, 0.0)

    def find(self) -> psutil.Process | None:
        """Return the process, while it runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_at) < _SAME_START_SECONDS
        except psutil.Error:
            return None
        return process if same and runs(self.pid) else None


@dataclass(slots=True)
class Running:
    """A started part. `close` it when it has ended."""

    part: Part
    process: subprocess.Popen[bytes]
    identity: Identity
    _ready_fd: int | None
    started_at: float = field(default_factory=monotonic)

    @classmethod
    def start(cls, part: Part, home: Home, lifeline_fd: int) -> Self:
        """Start a part in a session of its own, its output in its log. Raises OSError."""
        ready_read, ready_write = _ready_line(part)
        lent = (lifeline_fd if part.lifeline else None, ready_write)
        try:
            with home.open_log(part.name) as log:
                process = subprocess.Popen(
                    part.command_line(lifeline_fd, ready_write),
                    env=dict(part.environment),
                    cwd=part.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[fd for fd in lent if fd is not None],
                    start_new_session=True,
                )
        except BaseException:
            _close(ready_read)
            raise
        finally:
            _close(ready_write)
        return cls(part, process, Identity.of(process.pid), ready_read)

    @property
    def alive(self) -> bool:
        """Whether it runs; its exit status is collected when it does not."""
        return self.process.poll() is None

    def ready(self) -> bool:
        """Tell whether it can work now, by its probe or by its word."""
        if self.part.probe is not None:
            return self.part.probe()
        return self._ready_fd is not None and _said_so(self._ready_fd)

    def terminate(self) -> None:
        """Ask it to end."""
        self.process.terminate()

    def kill(self) -> None:
        """End it and what it started, at once, and wait for that."""
        with contextlib.suppress(
            ProcessLookupError, PermissionError
        ):  # macOS says EPERM of zombies
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Let go of its ready line."""
        _close(self._ready_fd)
        self._ready_fd = None


def end(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """End processes that are nobody's any more: ask, wait, then kill."""
    asked = list(processes)
    for process in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(asked, timeout=grace_seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace_seconds)


def runs(pid: int) -> bool:
    """Tell whether there is a process of that number that has not ended."""
    try:
        status: str = psutil.Process(pid).status()
    except psutil.Error:
        return False
    return bool(status != psutil.STATUS_ZOMBIE)


def _said_so(fd: int) -> bool:
    readable, _, _ = select.select([fd], [], [], 0)
    return bool(readable) and os.read(fd, 1) == b"1"


def _ready_line(part: Part) -> tuple[int | None, int | None]:
    return (None, None) if part.probe is not None else os.pipe()


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
