"""The folders of one embedded stack: where its socket, its data, its logs and its locks are.

Called by every other module of the stack. Makes folders that only their owner can enter, refuses
those that are not. Never reads or writes what is in them, logs excepted.
"""

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from worker.errors import StackError

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, a closing zero included.
SOCKET_PATH_BYTES: Final = 100
LOG_BYTES: Final = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Home:
    """The paths under one `CHATQUEUE_HOME`. Building one touches nothing on disk."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held exclusively by the supervisor for as long as it lives."""
        return self.path / "stack.lock"

    @property
    def users_lock(self) -> Path:
        """Held shared by each process that uses the stack."""
        return self.path / "users.lock"

    @property
    def record(self) -> Path:
        """What runs, for others to read; there only while the stack is ready."""
        return self.path / "stack.json"

    @property
    def data(self) -> Path:
        """Valkey's files. Its real path: the one name by which a left-over Valkey is known."""
        return Path(os.path.realpath(self.path)) / "broker"

    @property
    def run(self) -> Path:
        """The folder of the socket: under the home, or under the temp folder where too long."""
        near = Path(os.path.realpath(self.path)) / "run"
        if _fits(near / "valkey.sock"):
            return near
        name = hashlib.sha256(os.fsencode(near)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"chatqueue-{os.geteuid()}-{name}"

    @property
    def socket(self) -> Path:
        """Valkey's unix socket."""
        return self.run / "valkey.sock"

    def log(self, name: str) -> Path:
        """Name the file that holds a part's output."""
        return self.path / "logs" / f"{name}.log"

    def prepare(self) -> None:
        """Make what is missing. Raises StackError where that fails or a folder is not private."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.log("any").parent.mkdir(mode=0o700, exist_ok=True)
            for folder in (self.data, self.run):
                _make_private(folder)
        except OSError as error:
            raise StackError(f"the folder of the embedded stack cannot be used: {error}") from error
        if not _fits(self.socket):
            raise StackError(
                f"{self.socket} is too long for a socket; set TMPDIR to a shorter path"
            )

    def open_log(self, name: str) -> FileIO:
        """Open a part's log to append to. A large one is set aside first; one old one is kept."""
        path = self.log(name)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return FileIO(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a")

    def log_size(self, name: str) -> int:
        """Bytes in a part's log; 0 where there is none."""
        path = self.log(name)
        return path.stat().st_size if path.exists() else 0

    def tail(self, name: str, since: int = 0, lines: int = 20) -> str:
        """Return the last lines of a part's log, of what follows its first `since` bytes."""
        path = self.log(name)
        if not path.exists():
            return ""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A log shorter than it was has been set aside meanwhile: all of it is new.
            file.seek(max(since if since <= size else 0, size - 16_384))
            text = file.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def _fits(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= SOCKET_PATH_BYTES


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # not stat: in a shared temp folder a link could lead anywhere
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not private or found.st_uid != os.geteuid():
        raise StackError(
            f"{folder} must be a folder of mode 700 that belongs to you; remove it and start again"
        )
