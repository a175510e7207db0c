"""A supervisor as its starter sees it: a child process, a lifeline to it, the end of its log.

Called by `worker.stack.embedded` only. Starts one supervisor at a time, and only where nobody holds
the stack's lock; of two starters at one moment the lock decides, and the second uses what the first
started. Never stops a stack that it did not start.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from threading import Thread
from time import monotonic, sleep
from typing import Final

from worker.errors import StackError
from worker.stack import registry
from worker.stack.home import Home
from worker.stack.registry import Holder, StackInfo
from worker.stack.supervisor import clear_leftovers

POLL_SECONDS: Final = 0.05
_LOG: Final = "supervisor"


class Starter:
    """Starts a supervisor with `command` where none runs. `close` it in the end.

    With `lifeline` the supervisor ends when this process does and no user is left.
    """

    def __init__(
        self, home: Home, command: Sequence[str], environment: Mapping[str, str], *, lifeline: bool
    ) -> None:
        self._home = home
        self._command = command
        self._environment = environment
        self._with_lifeline = lifeline
        self._lifeline: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def use_or_start(self, deadline: float) -> StackInfo:
        """Return the stack that is up, or start one and wait until it is.

        Waits for one that is starting or stopping. Raises StackError when a new one does not start,
        or none is up by monotonic `deadline`.
        """
        while (info := registry.running(self._home)) is None:
            self._advance(registry.holder(self._home))
            if monotonic() > deadline:
                raise StackError(f"the embedded stack was not ready in time.\n{self._log_tail()}")
            sleep(POLL_SECONDS)
        if self._process is not None and self._process.pid != info.supervisor.pid:
            self._disown(self._process)
        return info

    def started(self) -> bool:
        """Tell whether the stack in use was started here."""
        return self._process is not None

    def stop(self, seconds: float) -> None:
        """Stop what was started here and wait. Raises StackError when it had to be killed."""
        if self._process is None:
            return
        try:
            _stop(self._process, seconds)
        finally:
            # A new supervisor may be there already; then the clearing up was its first business.
            if self._process.returncode != 0 and registry.holder(self._home) is None:
                clear_up(self._home)
            self._process = None

    def close(self) -> None:
        """Let go: a supervisor with a lifeline now ends with its last user, another one stays."""
        if self._process is not None:
            # Reaped by a thread, so that a caller that lives long keeps no dead child.
            Thread(target=self._process.wait, name="stack-reaper", daemon=True).start()
            self._process = None
        self._cut_lifeline()

    def _advance(self, held: Holder | None) -> None:
        if self._process is None:
            if held is None:
                self._spawn()
        elif self._process.poll() is not None:
            # Where another holds the lock, ours only came second, and that one is waited for.
            if held is None:
                raise StackError(f"the embedded stack did not start.\n{self._log_tail()}")
            self._disown(self._process)

    def _spawn(self) -> None:
        self._log_start = self._home.log_size(_LOG)
        if not self._with_lifeline:
            self._process = self._popen(self._command, ())
            return
        read_fd, self._lifeline = os.pipe()
        try:
            command = (*self._command, "--lifeline-fd", str(read_fd))
            self._process = self._popen(command, (read_fd,))
        finally:
            os.close(read_fd)

    def _popen(self, command: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
        with self._home.open_log(_LOG) as log:
            return subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                # A terminal's Ctrl-C is for the starter, who decides.
                start_new_session=True,
            )

    def _disown(self, second: subprocess.Popen[bytes]) -> None:
        self._process = None
        self._cut_lifeline()
        second.wait()

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _log_tail(self) -> str:
        log = self._home.log(_LOG)
        return f"The end of {log}:\n{self._home.tail(_LOG, self._log_start, lines=40)}"


def clear_up(home: Home) -> bool:
    """Clear up after a killed supervisor. Tell whether there was anything.

    Raises StackError when a supervisor runs.
    """
    home.prepare()
    with registry.hold(home):
        return clear_leftovers(home)


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except KeyboardInterrupt:
        process.terminate()  # the second signal is the quicker one
        process.wait(seconds)
        raise
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise StackError(f"the embedded stack did not stop within {seconds:g} s") from None
