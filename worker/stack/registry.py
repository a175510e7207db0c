"""What runs, and who may touch it: the locks and the record of a home.

Three files, each with one meaning, so that a process killed at any moment leaves nothing to repair:

    stack.lock   held exclusively by the supervisor while it lives; says who it is, with a token
    users.lock   held shared by each user of the stack; exclusively by who is about to stop it
    stack.json   what runs; true only while the lock is held and shows the same token

The kernel drops a lock with its holder, so a stale record is never believed. Called by the
supervisor (hold, publish) and by users (running, join). Never starts or ends a process.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Final, Self
from urllib.parse import urlsplit

from worker.errors import StackError
from worker.settings import Settings
from worker.stack.home import Home
from worker.stack.processes import Identity, runs

_POLL_SECONDS: Final = 0.05
# Others look at the lock by taking it shared for an instant: one refusal is not an answer.
_HOLD_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class StackInfo:
    """A running stack. It carries no secret.

    `owned`: it was started for a command and goes when that one and all other users are gone.
    `database`: which database its workers use, without the password.
    """

    token: str
    version: str
    started_at: datetime
    supervisor: Identity
    parts: dict[str, Identity]
    broker_url: str
    flower_url: str | None
    simulator_url: str | None
    database: str
    owned: bool
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Write the record's text."""
        return json.dumps(asdict(self), default=datetime.isoformat, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record. Raises ValueError, KeyError or TypeError when it is not one."""
        fields = json.loads(text)
        fields |= {
            "started_at": datetime.fromisoformat(fields["started_at"]),
            "supervisor": Identity(**fields["supervisor"]),
            "parts": {name: Identity(**value) for name, value in fields["parts"].items()},
            "notes": tuple(fields["notes"]),
        }
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a stack's lock. Just after it was taken, this is still the one before."""

    identity: Identity
    token: str


@contextmanager
def hold(home: Home) -> Iterator[str]:
    """Hold the stack's lock; gives the token that marks this holder's record.

    Raises StackError when another process holds it.
    """
    with _opened(home.lock) as fd:
        if not _lock(fd, fcntl.LOCK_EX, monotonic() + _HOLD_SECONDS):
            raise StackError(f"the embedded stack of {home.path} is already run by another process")
        me = Identity.of(os.getpid())
        token = secrets.token_hex(8)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{me.pid} {me.created_at} {token}".encode(), 0)
        yield token


def holder(home: Home) -> Holder | None:
    """Tell who holds the stack's lock now: who starts, runs or stops the stack. None: nobody."""
    if not home.lock.exists():
        return None
    with _opened(home.lock) as fd:
        if _lock(fd, fcntl.LOCK_SH, monotonic()):
            return None
        words = os.pread(fd, 100, 0).decode().split()
    pid, created_at, token = words if len(words) == 3 else ("0", "0", "")
    return Holder(Identity(int(pid), float(created_at)), token)


def recorded(home: Home) -> StackInfo | None:
    """Read the record, true or stale. None: there is none, or of a version unlike this one."""
    try:
        return StackInfo.from_json(home.record.read_text())
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def running(home: Home) -> StackInfo | None:
    """Return the stack that is up and ready."""
    info = recorded(home)
    # A new holder writes its token just after it took the lock; until then the lock shows that of
    # a dead one, whose pid tells.
    if info is None or not runs(info.supervisor.pid):
        return None
    held = holder(home)
    return info if held is not None and held.token == info.token else None


def database_name(settings: Settings) -> str:
    """Name the database of these settings, without its password."""
    parts = urlsplit(settings.sqlalchemy_url)
    login, at, place = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{login.partition(':')[0]}{at}{place}{parts.path}"


def publish(home: Home, info: StackInfo) -> None:
    """Write the record, whole or not at all; for the lock's holder only."""
    draft = home.record.with_suffix(".json.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(info.to_json())
    draft.replace(home.record)


def withdraw(home: Home) -> None:
    """Remove the record; for the lock's holder only."""
    home.record.unlink(missing_ok=True)


class Users:
    """One process's place in the users' lock: as a user of the stack, or as the one to stop it."""

    def __init__(self, home: Home) -> None:
        self._fd = os.open(home.users_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def join(self, deadline: float) -> None:
        """Be a user. Waits, until monotonic `deadline`, for a stack that is being stopped.

        Raises StackError when it is still there by then.
        """
        if not _lock(self._fd, fcntl.LOCK_SH, deadline):
            raise StackError("the embedded stack is still stopping; try again when it has ended")

    def shut_out(self) -> bool:
        """Tell whether nobody else uses the stack; if so nobody can join until `leave`.

        A user who is refused is no user any more: the kernel gives the old lock up first.
        """
        return _lock(self._fd, fcntl.LOCK_EX, monotonic())

    def leave(self) -> None:
        """Be a user no more. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(fd: int, kind: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() >= deadline:
                return False
            sleep(_POLL_SECONDS)
        else:
            return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
