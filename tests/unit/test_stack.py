"""The stack's values: plans, paths, locks and records; no part is started."""

import os
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from time import monotonic

import pytest
from pydantic import SecretStr

from worker.errors import SettingsError, StackError
from worker.settings import Settings
from worker.stack import StackInfo, Stage, arrange, lifeline, needs_simulator, plan, registry
from worker.stack.home import LOG_BYTES, SOCKET_PATH_BYTES, Home
from worker.stack.processes import Identity
from worker.stack.registry import Users


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", api_key=None)


@pytest.fixture
def home(settings: Settings) -> Home:
    home = Home(settings.home)
    home.prepare()
    return home


def info(token: str) -> StackInfo:
    me = Identity.of(os.getpid())
    return StackInfo(
        token=token,
        version="1",
        started_at=datetime.now(UTC),
        supervisor=me,
        parts={"valkey": me},
        broker_url="redis+socket:///run/valkey.sock",
        flower_url=None,
        simulator_url=None,
        database="sqlite:///chatqueue.db",
        owned=True,
        notes=("a note",),
    )


def test_plan_points_workers_at_the_socket_and_the_simulator(settings: Settings) -> None:
    arranged = plan(settings, workers=2, flower_port=5555, simulator_port=4000)
    assert [part.name for part in arranged.parts] == [
        "valkey", "simulator", "flower", "worker-1", "worker-2",
    ]  # fmt: skip
    worker = arranged.parts[-1]
    assert worker.environment["CHATQUEUE_BROKER_URL"] == arranged.broker_url
    assert worker.environment["CHATQUEUE_TEXT_ENDPOINTS"] == "http://127.0.0.1:4000"
    assert worker.environment["EVOLINK_API_KEY"] == "simulator"
    assert worker.command[-2:] == ("--name", "embedded-2")
    assert worker.stage is Stage.WORKER


def test_only_a_part_without_a_probe_is_told_where_to_say_it_is_ready(settings: Settings) -> None:
    broker, flower, worker = plan(settings, workers=1, flower_port=1, simulator_port=None).parts
    assert broker.command_line(8, None) == list(broker.command)
    assert flower.command_line(8, None)[-2:] == ["--lifeline-fd", "8"]
    assert worker.command_line(8, 9)[-4:] == ["--lifeline-fd", "8", "--ready-fd", "9"]
    assert not broker.environment


def test_a_taken_flower_port_gives_another_one_and_a_note(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arranged = arrange(settings.model_copy(update={"flower_port": port}), simulator=False)
    assert arranged.flower_url is not None
    assert arranged.flower_url != f"http://127.0.0.1:{port}"
    assert str(port) in arranged.notes[0]


def test_an_address_that_is_not_ours_is_refused_with_the_settings_name(settings: Settings) -> None:
    secured = {"flower_address": "192.0.2.1", "flower_auth": SecretStr("me:pass")}
    elsewhere = settings.model_copy(update=secured)
    with pytest.raises(StackError, match="CHATQUEUE_FLOWER_ADDRESS"):
        arrange(elsewhere)


OPEN = ("0.0.0.0", "", "::", "192.0.2.1", "example.org")  # noqa: S104  # to be refused


@pytest.mark.parametrize("address", OPEN)
def test_flower_is_not_open_to_others_without_a_password(settings: Settings, address: str) -> None:
    open_ = settings.model_copy(update={"flower_address": address})
    with pytest.raises(SettingsError, match="CHATQUEUE_FLOWER_AUTH"):
        arrange(open_)
    assert arrange(open_, flower=False).flower_url is None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_on_loopback_flower_needs_no_password(settings: Settings, address: str) -> None:
    settings.model_copy(update={"flower_address": address}).check_flower()


def test_the_simulator_is_for_those_without_key_and_endpoints(settings: Settings) -> None:
    assert needs_simulator(settings)
    assert not needs_simulator(Settings(home=settings.home, api_key="made up"))
    own = settings.model_copy(update={"text_endpoints": ("http://127.0.0.1:1",)})
    assert not needs_simulator(own)


def test_a_long_home_has_its_socket_in_a_short_private_folder(tmp_path: Path) -> None:
    home = Home(tmp_path / ("x" * 120))
    home.prepare()
    assert len(os.fsencode(home.socket)) <= SOCKET_PATH_BYTES
    assert home.run.stat().st_mode & 0o777 == 0o700
    home.run.rmdir()


def test_a_run_folder_open_to_others_or_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    home.run.chmod(0o755)
    with pytest.raises(StackError, match="mode 700"):
        home.prepare()
    home.run.rmdir()
    home.run.symlink_to(tmp_path)
    with pytest.raises(StackError, match="mode 700"):
        home.prepare()


def test_a_large_log_is_set_aside_and_one_old_one_kept(home: Home) -> None:
    for _ in range(2):
        with home.log("part").open("wb") as large:
            large.truncate(LOG_BYTES + 1)
        with home.open_log("part") as log:
            log.write(b"first line\nlast line\n")
    assert home.tail("part", lines=1) == "last line"
    assert len(list(home.log("part").parent.iterdir())) == 2


def test_the_record_is_believed_only_while_its_writer_holds_the_lock(home: Home) -> None:
    with registry.hold(home) as token:
        assert registry.running(home) is None
        registry.publish(home, info(token))
        assert (found := registry.running(home)) is not None
        assert found.token == token
        with pytest.raises(StackError, match="another process"), registry.hold(home):
            pass
    assert registry.running(home) is None
    with registry.hold(home):
        assert registry.running(home) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "of another version"}'])
def test_a_record_that_cannot_be_read_is_none(home: Home, text: str) -> None:
    home.record.write_text(text)
    assert registry.recorded(home) is None


def test_a_record_reads_back_as_it_was_written() -> None:
    written = info("a token")
    assert StackInfo.from_json(written.to_json()) == written


def test_a_database_is_named_without_its_password(settings: Settings) -> None:
    url = "postgresql://me:secret@db.example:5432/jobs"
    other = Settings(home=settings.home, database_url=url)
    assert registry.database_name(other) == "postgresql+psycopg://me@db.example:5432/jobs"
    assert registry.database_name(settings).endswith("/home/chatqueue.db")


def test_the_last_user_alone_can_shut_others_out(home: Home) -> None:
    first, second, third = Users(home), Users(home), Users(home)
    first.join(monotonic())
    second.join(monotonic())
    assert not first.shut_out()
    assert second.shut_out()
    with pytest.raises(StackError, match="stopping"):
        third.join(monotonic())
    second.leave()
    third.join(monotonic())
    for user in (first, second, third):
        user.leave()


def test_a_process_is_not_mistaken_for_a_later_one_of_its_number() -> None:
    me = Identity.of(os.getpid())
    assert me.find()
    assert replace(me, created_at=me.created_at - 60).find() is None


def test_a_lifeline_tells_of_its_holders_end_once() -> None:
    read_fd, write_fd = os.pipe()
    lost = Event()
    lifeline.watch(read_fd, lost.set)
    assert not lost.is_set()
    os.close(write_fd)
    assert lost.wait(5)


def test_a_number_that_is_no_lifeline_is_refused() -> None:
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    os.close(read_fd)
    with pytest.raises(StackError, match="--lifeline-fd"):
        lifeline.watch(read_fd, lambda: None)


def test_readiness_is_one_byte_and_no_supervisor_is_no_fault() -> None:
    read_fd, write_fd = os.pipe()
    lifeline.announce_ready(write_fd)
    assert os.read(read_fd, 8) == b"1"
    os.close(read_fd)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    lifeline.announce_ready(write_fd)
    lifeline.announce_ready(None)
