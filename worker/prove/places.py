"""Where a proof runs: a database and a broker, scratch ones or a user's, and how to harm them.

Made and left by `worker.prove.scenario`. On a user's servers everything has a name of its own and
is removed at the end: a schema on PostgreSQL, keys or queues of one prefix on Redis or RabbitMQ.
Those servers themselves are never touched: workers reach them through a proxy, and that is cut.
"""

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Final, Protocol, Self
from urllib.parse import unquote, urlsplit

from worker.errors import SettingsError, StackError
from worker.prove.proxy import Proxy, Target
from worker.queue.app import check_broker
from worker.queue.scratch import purge_queues, remove_queues
from worker.settings import Settings
from worker.stack import valkey
from worker.stack.home import Home
from worker.stack.keys import drop_keys
from worker.stack.parts import Part, Stage
from worker.stack.processes import Running
from worker.store import scratch
from worker.store.engine import Database

_LOCK_SECONDS: Final = 4.0
"""The lock on SQLite is let go of after so long: who would do it may be waiting for it."""

_START_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05

_REDIS: Final = {"redis": 6379, "rediss": 6379, "valkey": 6379}
_AMQP: Final = {"amqp": 5672, "amqps": 5671}
_PLAIN: Final = {"rediss": "redis", "amqps": "amqp"}


class Place(Protocol):
    """A database or a broker, from `with` to its end.

    `url` leads straight to it; `workers_url` is how workers reach it, so that `go_away` is felt by
    them only.
    """

    url: str
    workers_url: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def go_away(self) -> None:
        """Make it unreachable, until `come_back`."""

    def come_back(self) -> None:
        """Make it reachable again."""


class BrokerPlace(Place, Protocol):
    """A broker, whose messages can be lost."""

    def empty(self) -> None:
        """Lose every message. Raises BrokerError, StackError where it is away."""


# --- databases ------------------------------------------------------------------------------------


class SqlitePlace:
    """A SQLite file in the home. Away means: somebody else has the lock on it."""

    def __init__(self, home: Home) -> None:
        self.url = self.workers_url = f"sqlite:///{home.path / 'chatqueue.db'}"
        self._free = threading.Event()
        self._holder: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.come_back()

    def go_away(self) -> None:
        """Take the lock."""
        if self._holder is None:
            self._free.clear()
            self._holder = threading.Thread(target=self._hold, name="lock", daemon=True)
            self._holder.start()

    def come_back(self) -> None:
        """Let go of the lock."""
        self._free.set()
        if self._holder is not None:
            self._holder.join()
            self._holder = None

    def _hold(self) -> None:
        with Database(self.url) as database:
            scratch.hold_the_lock(database, partial(self._free.wait, _LOCK_SECONDS))


class PostgresPlace:
    """A schema of our own on a user's PostgreSQL."""

    def __init__(self, url: str, schema: str) -> None:
        self._server = url
        self._schema = schema
        self.url = scratch.in_schema(url, schema)
        host, port = scratch.address(url)
        path = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else host
        self._proxy = Proxy(Target(path, port))
        self.workers_url = scratch.by_way_of(self.url, self._proxy.port)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            scratch.create_schema(self._server, self._schema)
            undo.callback(scratch.drop_schema, self._server, self._schema)
            undo.enter_context(self._proxy)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def go_away(self) -> None:
        """Cut the workers off."""
        self._proxy.cut()

    def come_back(self) -> None:
        """Let them through."""
        self._proxy.mend()


# --- brokers --------------------------------------------------------------------------------------


class EmbeddedBroker:
    """A Valkey of our own in the home, which is killed and emptied for real."""

    def __init__(self, home: Home, lifeline_fd: int) -> None:
        self.url = self.workers_url = valkey.url(home)
        self._home = home
        self._lifeline_fd = lifeline_fd
        self._part = Part(
            name="valkey",
            command=(sys.executable, "-m", "worker.stack.keeper", *valkey.command(home)),
            environment=Settings.apart().environment(),
            stage=Stage.BROKER,
            probe=partial(valkey.answers, home),
        )
        self._running: Running | None = None

    def __enter__(self) -> Self:
        self.come_back()
        deadline = time.monotonic() + _START_SECONDS
        while not valkey.answers(self._home):
            if time.monotonic() > deadline:
                self.go_away()
                raise StackError(f"the broker did not start:\n{self._home.tail('valkey')}")
            time.sleep(_POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def go_away(self) -> None:
        """Kill it."""
        if self._running is not None:
            self._running.kill()
            self._running.close()
            self._running = None

    def come_back(self) -> None:
        """Start it."""
        if self._running is None:
            self._running = Running.start(self._part, self._home, self._lifeline_fd)

    def empty(self) -> None:
        """Lose everything."""
        valkey.empty(self._home)


class RemoteBroker:
    """Names of our own on a user's Redis or RabbitMQ."""

    def __init__(self, url: str, prefix: str, workers: Sequence[str]) -> None:
        parts = urlsplit(url)
        ports = _REDIS | _AMQP
        if parts.scheme not in ports or not parts.hostname:
            raise SettingsError(["--broker-url must be redis://…, valkey://… or amqp://…"])
        self.url = url
        self._is_redis = parts.scheme in _REDIS
        self._prefix = prefix
        self._workers = workers
        self._settings = Settings.apart(broker_url=url, queue_prefix=prefix)
        target = Target(
            unquote(parts.hostname), parts.port or ports[parts.scheme], parts.scheme in _PLAIN
        )
        self._proxy = Proxy(target)
        login, at, _ = parts.netloc.rpartition("@")
        scheme = _PLAIN.get(parts.scheme, parts.scheme)
        self.workers_url = parts._replace(
            scheme=scheme, netloc=f"{login}{at}127.0.0.1:{self._proxy.port}"
        ).geturl()

    def __enter__(self) -> Self:
        check_broker(self._settings)
        self._proxy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.__exit__()
        if self._is_redis:
            self.empty()
        else:
            remove_queues(self._settings, self._workers)

    def go_away(self) -> None:
        """Cut the workers off."""
        self._proxy.cut()

    def come_back(self) -> None:
        """Let them through."""
        self._proxy.mend()

    def empty(self) -> None:
        """Lose every message of ours."""
        if self._is_redis:
            drop_keys(self._redis_url, self._prefix)
        else:
            purge_queues(self._settings, self._workers)

    @property
    def _redis_url(self) -> str:
        return self._settings.celery_broker_url or self.url
