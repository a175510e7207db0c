"""Stacks with a real supervisor and a real Valkey; the workers are small stand-ins."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest
from kombu.connection import Connection
from pydantic import SecretStr

from worker.errors import StackError
from worker.settings import Settings
from worker.stack import EmbeddedStack, StackInfo, down, ensure, running, valkey
from worker.stack.home import SOCKET_PATH_BYTES, Home

# A part: it ends at SIGTERM, or when its lifeline does; by `behaviour` it fails to start.
PART = """
import argparse, os, signal, sys
from worker.stack import lifeline
parser = argparse.ArgumentParser()
parser.add_argument("behaviour")
parser.add_argument("--lifeline-fd", type=int)
parser.add_argument("--ready-fd", type=int)
options = parser.parse_args()
if options.behaviour == "fails":
    sys.exit("no such model")
if options.behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
lifeline.watch(options.lifeline_fd, lambda: os._exit(7))
lifeline.announce_ready(options.ready_fd)
while True:
    signal.pause()
"""

# What `chatqueue up` is to do, with such parts for workers.
UP = """
import argparse, os, sys
from worker.errors import StackError
from worker.settings import Settings
from worker.stack import Part, Plan, supervise, valkey
from worker.stack.home import Home
from worker.stack.parts import broker
parser = argparse.ArgumentParser()
parser.add_argument("part")
parser.add_argument("behaviour")
parser.add_argument("--lifeline-fd", type=int)
parser.add_argument("--workers", type=int)
for name in ("flower", "simulator"):
    parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
options = parser.parse_args()
settings = Settings.load()
home = Home(settings.home)
command = (sys.executable, options.part, options.behaviour)
parts = [Part(f"part-{n}", command, os.environ, grace_seconds=30) for n in range(options.workers)]
try:
    supervise(
        settings,
        lambda: Plan((broker(home), *parts), valkey.url(home)),
        lifeline_fd=options.lifeline_fd,
    )
except StackError as error:
    sys.exit(str(error))
"""

# A command that uses a stack, to be killed.
USER = """
import sys
from worker.settings import Settings
from worker.stack import EmbeddedStack
with EmbeddedStack(Settings.load(), workers=1, up=sys.argv[1:]) as stack:
    print(stack.info.token, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path / "home", api_key="made up", drain_seconds=1)
    yield settings
    down(settings)


@pytest.fixture
def up(tmp_path: Path) -> Callable[[str], list[str]]:
    (tmp_path / "part.py").write_text(PART)
    (tmp_path / "up.py").write_text(UP)
    (tmp_path / "user.py").write_text(USER)

    def command(behaviour: str = "works") -> list[str]:
        return [sys.executable, str(tmp_path / "up.py"), str(tmp_path / "part.py"), behaviour]

    return command


@pytest.fixture
def start_user(
    settings: Settings, up: Callable[[], list[str]], tmp_path: Path
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    users: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        user = subprocess.Popen(
            [sys.executable, str(tmp_path / "user.py"), *up()],
            env=settings.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        users.append(user)
        return user

    yield start
    for user in users:
        user.kill()
        user.communicate()


def eventually(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"not within {seconds} s: {what}"
        sleep(0.02)


def check_privacy(home: Home, info: StackInfo) -> None:
    modes = [path.stat().st_mode & 0o777 for path in (home.run, home.socket, home.record)]
    assert modes == [0o700, 0o700, 0o600]
    assert "made up" not in home.record.read_text()
    assert not psutil.Process(info.parts["valkey"].pid).net_connections("inet")


def put(broker_url: str, message: str) -> None:
    with connect(broker_url) as connection, connection.SimpleQueue("jobs") as queue:
        queue.put(message)


def get(broker_url: str) -> object:
    with connect(broker_url) as connection, connection.SimpleQueue("jobs") as queue:
        message = queue.get(timeout=5)
        message.ack()
        return message.payload


def connect(broker_url: str) -> Any:
    return Connection(broker_url)  # type: ignore[no-untyped-call]  # kombu has no annotations


def all_gone(info: StackInfo) -> bool:
    return not any(who.find() for who in (info.supervisor, *info.parts.values()))


def token_of(user: subprocess.Popen[str]) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def test_a_stack_is_ready_and_private_inside_the_with_and_gone_after_it(
    settings: Settings, up: Callable[[], list[str]]
) -> None:
    with EmbeddedStack(settings, workers=2, up=up()) as stack:
        info = stack.info
        stack.check()
        assert running(settings) == info
        assert set(info.parts) == {"valkey", "part-0", "part-1"}
        assert all(identity.find() for identity in info.parts.values())
        check_privacy(Home(settings.home), info)
        put(stack.info.broker_url, "a ring")
        assert get(stack.info.broker_url) == "a ring"
    assert all_gone(info)
    assert running(settings) is None
    assert not Home(settings.home).record.exists()
    with pytest.raises(StackError, match="has stopped"):
        stack.check()


def test_parts_that_die_are_started_again(settings: Settings, up: Callable[[], list[str]]) -> None:
    with EmbeddedStack(settings, workers=1, up=up()) as stack:
        before = stack.info.parts
        for identity in before.values():
            os.kill(identity.pid, signal.SIGKILL)

        def replaced() -> bool:
            now = running(settings)
            return now is not None and all(now.parts[n].pid != before[n].pid for n in before)

        eventually(replaced, "every part again")
        eventually(lambda: valkey.answers(Home(settings.home)), "an answer of Valkey")
        stack.check()


def test_a_part_that_does_not_start_is_named_with_the_end_of_its_log(
    settings: Settings, up: Callable[[str], list[str]]
) -> None:
    stack = EmbeddedStack(settings, workers=1, up=up("fails"))
    with pytest.raises(StackError, match=r"(?s)part-0 ended with status 1 .*no such model"):
        stack.__enter__()
    assert not valkey.leftovers(Home(settings.home))


def test_a_killed_starter_leaves_nothing_running(
    settings: Settings, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    user = start_user()
    assert token_of(user)
    info = running(settings)
    assert info is not None
    assert info.owned
    user.kill()
    eventually(lambda: all_gone(info), "the end of the stack")
    assert not Home(settings.home).record.exists()


def test_a_second_user_keeps_the_stack_of_a_killed_starter(
    settings: Settings,
    up: Callable[[], list[str]],
    start_user: Callable[[], subprocess.Popen[str]],
) -> None:
    starter = start_user()
    token = token_of(starter)
    with EmbeddedStack(settings, workers=1, up=up()) as second:
        assert second.info.token == token
        starter.kill()
        starter.wait()
        for _ in range(3):  # longer than the supervisor takes to look round
            sleep(0.25)
            second.check()
    eventually(lambda: all_gone(second.info), "the end of the stack")


def test_two_who_start_at_once_share_one_stack(
    settings: Settings, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    first, second = start_user(), start_user()
    assert token_of(first) == token_of(second) != ""
    info = running(settings)
    assert info is not None
    for user in (first, second):
        user.communicate("", timeout=15)
        assert user.returncode == 0
    eventually(lambda: all_gone(info), "the end of the stack")


def test_after_a_killed_supervisor_the_next_start_works_and_keeps_the_brokers_content(
    settings: Settings, up: Callable[[], list[str]]
) -> None:
    info = ensure(settings, workers=1, up=up())
    assert not info.owned
    put(info.broker_url, "a ring")
    os.kill(info.supervisor.pid, signal.SIGKILL)
    eventually(lambda: info.parts["part-0"].find() is None, "the part's own end")
    assert info.parts["valkey"].find()
    assert running(settings) is None
    again = ensure(settings, workers=1, up=up())
    assert again.token != info.token
    assert info.parts["valkey"].find() is None
    assert get(again.broker_url) == "a ring"


def test_after_everything_was_killed_the_next_start_works(
    settings: Settings, up: Callable[[], list[str]]
) -> None:
    info = ensure(settings, workers=1, up=up())
    for identity in (info.supervisor, *info.parts.values()):
        with suppress(ProcessLookupError):
            os.kill(identity.pid, signal.SIGKILL)
    eventually(lambda: all_gone(info), "the end of all")
    assert Home(settings.home).socket.exists()
    with EmbeddedStack(settings, workers=1, up=up()) as stack:
        assert stack.info.token != info.token


def test_a_kept_stack_outlives_its_users_and_refuses_other_settings_until_down(
    settings: Settings, up: Callable[[], list[str]], tmp_path: Path
) -> None:
    kept = ensure(settings, workers=1, up=up())
    with EmbeddedStack(settings, workers=1, up=up()) as stack:
        assert stack.info == kept
    other = {"database_url": SecretStr(f"sqlite:///{tmp_path / 'other.db'}")}
    with pytest.raises(StackError, match="another database"):
        EmbeddedStack(settings.model_copy(update=other), up=up()).__enter__()
    with pytest.raises(StackError, match="not the simulator"):
        EmbeddedStack(settings.model_copy(update={"api_key": None}), up=up()).__enter__()
    assert running(settings) == kept
    assert down(settings)
    assert all_gone(kept)
    assert not down(settings)


def test_a_second_signal_is_quicker(settings: Settings, up: Callable[[str], list[str]]) -> None:
    info = ensure(settings, workers=1, up=up("stubborn"))
    os.kill(info.supervisor.pid, signal.SIGTERM)
    eventually(lambda: not Home(settings.home).record.exists(), "the begin of the stop")
    assert info.parts["part-0"].find()
    os.kill(info.supervisor.pid, signal.SIGTERM)
    eventually(lambda: all_gone(info), "the end of the stack", seconds=8)


def test_a_home_too_long_for_a_socket_gets_a_private_folder(
    tmp_path: Path, up: Callable[[], list[str]]
) -> None:
    settings = Settings(home=tmp_path / ("long name %20;" * 10), api_key="made up")
    home = Home(settings.home)
    with EmbeddedStack(settings, workers=1, up=up()) as stack:
        assert home.path not in home.socket.parents
        assert len(os.fsencode(home.socket)) <= SOCKET_PATH_BYTES
        assert home.run.stat().st_mode & 0o777 == 0o700
        assert valkey.answers(home)
        assert stack.info.broker_url == valkey.url(home)
    home.run.rmdir()
