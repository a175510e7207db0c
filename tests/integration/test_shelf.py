import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from structlog.testing import capture_logs

from worker.gate.shelf import KEPT_SECONDS, SharedShelf, States

THREADS = 8
ROUNDS = 25


def count_up(states: States, _now: float) -> tuple[States, int]:
    """A step that adds one to every number."""
    numbers = [int(state or 0) + 1 for state in states]
    return [str(number).encode() for number in numbers], numbers[0]


def look(states: States, _now: float) -> tuple[States, States]:
    """A step that changes nothing."""
    return states, states


def client_of(url: str, number: int = 0) -> "redis.Redis":
    return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"), db=number)


def test_of_many_threads_and_two_processes_no_change_is_lost(valkey: str) -> None:
    shelves = [SharedShelf(valkey), SharedShelf(valkey)]
    line = threading.Barrier(THREADS)

    def change(number: int) -> list[int]:
        line.wait(30)
        return [shelves[number % 2].change(["one"], count_up) for _ in range(ROUNDS)]

    with capture_logs() as lines, ThreadPoolExecutor(THREADS) as pool:
        seen = [number for numbers in pool.map(change, range(THREADS)) for number in numbers]
    assert lines == []
    assert sorted(seen) == list(range(1, THREADS * ROUNDS + 1))
    assert shelves[0].change(["one"], look) == [str(THREADS * ROUNDS).encode()]


def test_states_are_shared_under_their_names(valkey: str) -> None:
    one, other = SharedShelf(valkey), SharedShelf(valkey)
    one.change(["a", "b"], lambda _states, _now: ([b"1", b"2"], None))
    assert other.change(["b", "c", "a"], look) == [b"2", None, b"1"]


def test_the_time_is_that_of_the_server_for_all(valkey: str) -> None:
    with client_of(valkey) as client:
        seconds, _ = client.time()
        now = SharedShelf(valkey).change(["a"], lambda states, now: (states, now))
        assert seconds <= now <= seconds + 30


def test_a_state_that_is_put_down_is_forgotten_after_its_time(valkey: str) -> None:
    SharedShelf(valkey).change(["a"], count_up)
    with client_of(valkey) as client:
        assert 0 < client.ttl("chatqueue:gate:a") <= KEPT_SECONDS
        assert client.get("chatqueue:gate:a") == b"1"


def test_what_is_looked_at_is_not_written(valkey: str) -> None:
    assert SharedShelf(valkey).change(["a"], look) == [None]
    with client_of(valkey) as client:
        assert client.keys() == []


def test_a_state_that_becomes_none_reads_as_none(valkey: str) -> None:
    shelf = SharedShelf(valkey)
    shelf.change(["a", "b"], count_up)
    shelf.change(["a"], lambda _states, _now: ([None], None))
    (a, b) = shelf.change(["a", "b"], look)
    assert not a
    assert b == b"1"


def test_the_number_of_the_database_is_heeded(valkey: str) -> None:
    SharedShelf(f"{valkey}?virtual_host=3").change(["a"], count_up)
    SharedShelf(f"{valkey}?x=y&virtual_host=3").change(["a"], count_up)
    assert SharedShelf(valkey).change(["a"], look) == [None]
    with client_of(valkey, 3) as client:
        assert client.get("chatqueue:gate:a") == b"2"


def test_a_fault_of_the_step_is_the_callers(valkey: str) -> None:
    def fail(_states: States, _now: float) -> tuple[States, None]:
        raise LookupError

    shelf = SharedShelf(valkey)
    with capture_logs() as lines, pytest.raises(LookupError):
        shelf.change(["a"], fail)
    assert lines == []
    assert shelf.change(["a"], count_up) == 1


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_without_a_server_each_process_keeps_its_own(closed_port: int) -> None:
    shelf = SharedShelf(f"redis://127.0.0.1:{closed_port}/0", away_seconds=0.0)
    with capture_logs() as lines:
        assert [shelf.change(["a"], count_up) for _ in range(5)] == [1, 2, 3, 4, 5]
    (line,) = lines  # told once, though each change has tried
    assert (line["event"], line["log_level"]) == ("lost", "error")
    assert "127.0.0.1" not in str(line)


def test_a_server_that_is_away_is_left_alone_for_a_while(closed_port: int) -> None:
    shelf = SharedShelf(f"redis://127.0.0.1:{closed_port}/0", away_seconds=600.0)
    shelf.change(["a"], count_up)
    with socket.create_server(("127.0.0.1", closed_port)) as server:
        server.settimeout(0)
        assert shelf.change(["a"], count_up) == 2
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_server_that_is_back_is_used_again(valkey: str) -> None:
    shelf = SharedShelf(valkey, away_seconds=0.0)
    with client_of(valkey) as client, capture_logs() as lines:
        assert shelf.change(["a"], count_up) == 1
        client.set("chatqueue:gate:a", "7")
        client.config_set("maxclients", 1)
        try:
            # Our own connection is the one that is let in; the shelf's is cut off.
            client.client_kill_filter(skipme=True)
            assert [shelf.change(["a"], count_up) for _ in range(2)] == [1, 2]
        finally:
            client.config_set("maxclients", 1_000)
        assert [shelf.change(["a"], count_up) for _ in range(2)] == [8, 9]
    assert [line["event"] for line in lines] == ["lost", "back"]
    assert lines[1]["seconds"] >= 0
