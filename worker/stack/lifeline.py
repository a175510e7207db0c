"""Lifelines: how a process learns that the one it works for is gone, even by SIGKILL.

A lifeline is the read end of a pipe whose only write end is held by the process to be outlived by
nobody: when that one ends, however it ends, the kernel closes its end and the reader meets the end
of the file. Nothing is ever written to it. A ready line is the other way round: a child writes one
byte when it can work.

Called by the commands that the supervisor starts, with the numbers from their `--lifeline-fd` and
`--ready-fd` options. Never decides what a process does when it is alone: `on_lost` does.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from threading import Thread

from worker.errors import StackError


def watch(fd: int | None, on_lost: Callable[[], None]) -> None:
    """Call `on_lost` once, in a daemon thread, when the other end of `fd` is gone.

    None (started by hand, no lifeline) does nothing. Raises StackError when `fd` is not open here.
    """
    if fd is None:
        return
    _keep_from_children(fd)
    Thread(target=_await_end, args=(fd, on_lost), name="lifeline", daemon=True).start()


def announce_ready(fd: int | None) -> None:
    """Tell the supervisor that this process can work; None does nothing. At most once per `fd`."""
    if fd is None:
        return
    # A supervisor that is gone needs no news; the lifeline tells of its end.
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, b"1")
    os.close(fd)


def _await_end(fd: int, on_lost: Callable[[], None]) -> None:
    while os.read(fd, 64):
        pass
    os.close(fd)
    on_lost()


def _keep_from_children(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    except OSError as error:
        raise StackError(
            f"--lifeline-fd {fd}: no such open file descriptor ({error.strerror}); "
            "the option is for processes started by the embedded stack"
        ) from error
