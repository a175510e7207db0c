"""The proxy that makes a server unreachable without touching it."""

import gc
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.prove.proxy import Proxy, Target

SECONDS = 10.0


class Echo(socketserver.StreamRequestHandler):
    """Sends back what it is sent, a line at a time; hangs up after `bye`."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)
            if line == b"bye\n":
                return


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class LocalServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    path = str(tmp_path / "echo.sock")
    server: Server | LocalServer
    if request.param == "tcp":
        server = Server(("127.0.0.1", 0), Echo)
        found = Target("127.0.0.1", server.server_address[1])
    else:
        server = LocalServer(path, Echo)
        found = Target(path, 0)
    with server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield found
        finally:
            server.shutdown()


@pytest.fixture
def proxy(target: Target) -> Iterator[Proxy]:
    with Proxy(target) as running:
        yield running


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=SECONDS)


def echoed(one: socket.socket, line: bytes) -> bytes:
    one.sendall(line)
    with one.makefile("rb") as reader:
        return reader.readline()


def test_what_is_sent_arrives_and_what_is_answered_comes_back(proxy: Proxy) -> None:
    large = b"x" * 1_000_000 + b"\n"
    with connect(proxy) as one, connect(proxy) as other:
        assert echoed(one, b"one\n") == b"one\n"
        with other.makefile("rb") as reader:
            sender = threading.Thread(target=other.sendall, args=(large,))
            sender.start()
            assert reader.readline() == large
            sender.join()


def test_the_last_words_of_a_server_that_hangs_up_arrive(proxy: Proxy) -> None:
    with connect(proxy) as one, one.makefile("rb") as reader:
        one.sendall(b"bye\n")
        assert reader.read() == b"bye\n"


def test_while_it_is_cut_connections_break_and_new_ones_are_refused(proxy: Proxy) -> None:
    with connect(proxy) as one:
        assert echoed(one, b"before\n") == b"before\n"
        proxy.cut()
        assert one.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.mend()
    with connect(proxy) as one:
        assert echoed(one, b"after\n") == b"after\n"


def test_it_can_be_cut_and_mended_twice(proxy: Proxy) -> None:
    proxy.cut()
    proxy.cut()
    proxy.mend()
    proxy.mend()
    with connect(proxy) as one:
        assert echoed(one, b"well\n") == b"well\n"


def test_a_server_that_is_away_is_away_behind_it_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with Proxy(Target("127.0.0.1", closed)) as proxy, connect(proxy) as one:
        assert one.recv(1) == b""


def test_nothing_listens_after_its_end(target: Target) -> None:
    with Proxy(target) as proxy:
        connect(proxy).close()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)


def test_a_connection_that_comes_at_the_last_moment_is_closed_like_any_other(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[object] = []  # the interpreter's, of sockets that nobody closed
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    for _ in range(50):
        with Proxy(target) as proxy:
            late = [connect(proxy) for _ in range(3)]
        for one in late:
            one.close()
    gc.collect()
    assert not complaints
