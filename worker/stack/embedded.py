"""The stack as a command or a program uses it: use the one that is up, or start one; stop it.

Called by the CLI and the Python API where no broker is configured. A stack started here runs under
a supervisor process of its own. Never runs a part itself.
"""

import sys
from collections.abc import Sequence
from time import monotonic, sleep
from types import TracebackType
from typing import Final, Self

import psutil

from worker.errors import StackError
from worker.settings import Settings
from worker.stack import registry
from worker.stack.home import Home
from worker.stack.parts import DRAIN_MARGIN_SECONDS, connected, needs_simulator
from worker.stack.processes import Identity
from worker.stack.registry import Holder, StackInfo, Users
from worker.stack.starter import POLL_SECONDS, Starter, clear_up

UP: Final = (sys.executable, "-m", "worker", "up")
_START_SECONDS: Final = 90.0
_STOP_MARGIN_SECONDS: Final = 25.0  # Flower and simulator, then Valkey, after the workers


def running(settings: Settings) -> StackInfo | None:
    """Return the stack of this home that is up and ready, whoever started it."""
    return registry.running(Home(settings.home))


def down(settings: Settings) -> bool:
    """Stop this home's stack, whoever uses it, and wait for that. Tell whether there was one.

    Also clears up after a killed one. Raises StackError when it does not stop in time.
    """
    home = Home(settings.home)
    if not home.path.exists():
        return False
    if registry.holder(home) is None:
        return clear_up(home)
    _stop_holder(home, monotonic() + _stop_seconds(settings))
    return True


def ensure(
    settings: Settings,
    *,
    workers: int | None = None,
    flower: bool = True,
    simulator: bool | None = None,
    up: Sequence[str] = UP,
) -> StackInfo:
    """Return the stack that is up, or start one that stays until `down`.

    One that is up may be `owned` by a command: then it goes with that. Options and errors are those
    of `EmbeddedStack`.
    """
    stack = EmbeddedStack(settings, workers=workers, flower=flower, simulator=simulator, up=up)
    with stack.without_lifeline():
        return stack.info


class EmbeddedStack:
    """A stack for the time of a `with`: the one that is up, or a new one.

    While inside, this process counts as a user: the stack does not go because its starter does.
    At the end a stack that was started here is stopped and waited for, unless others use it: then
    it goes with the last of them. Killed, this process takes no stack with it that others use, and
    leaves none behind that nobody uses.

    `workers`, `flower` and `simulator` count only where a stack is started; `up` is the command
    that supervises, for tests. `info` and `settings` (with its broker and endpoints) are there
    inside the `with`. Entering raises StackError: a part did not start (with the end of its log),
    or the stack that is up works on another database or calls another API than these settings.
    """

    info: StackInfo
    settings: Settings

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int | None = None,
        flower: bool = True,
        simulator: bool | None = None,
        up: Sequence[str] = UP,
    ) -> None:
        self.settings = settings
        self._given = settings
        self._home = Home(settings.home)
        self._simulator = needs_simulator(settings) if simulator is None else simulator
        count = settings.workers if workers is None else workers
        self._command = (*up, *_options(count, flower=flower, simulator=self._simulator))
        self._stays = False

    def without_lifeline(self) -> Self:
        """Have a stack that is started here stay when the `with` ends."""
        self._stays = True
        return self

    def __enter__(self) -> Self:
        self._home.prepare()
        self._users = Users(self._home)
        environment = self._given.environment()
        self._starter = Starter(self._home, self._command, environment, lifeline=not self._stays)
        try:
            self._enter(monotonic() + _stop_seconds(self._given) + _START_SECONDS)
        except BaseException:
            self._leave(stop=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(stop=not self._stays)

    def check(self) -> None:
        """Raise StackError when the stack that was entered is not up any more."""
        now = registry.running(self._home)
        if now is None or now.token != self.info.token:
            raise StackError(
                "the embedded stack has stopped; its log is "
                f"{self._home.log('supervisor')}. Run the command again to go on"
            )

    def _enter(self, deadline: float) -> None:
        self._users.join(deadline)
        info = self._starter.use_or_start(deadline)
        _check_agreement(info, self._given, simulator=self._simulator)
        self.info = info
        self.settings = connected(self._given, info.broker_url, info.simulator_url)

    def _leave(self, *, stop: bool) -> None:
        """Be a user no more; stop what was started here when nobody else uses it."""
        try:
            if stop and self._starter.started() and self._users.shut_out():
                self._starter.stop(_stop_seconds(self._given))
        finally:
            self._starter.close()
            self._users.leave()


def _check_agreement(info: StackInfo, settings: Settings, *, simulator: bool) -> None:
    """Refuse a stack whose workers would never see our jobs, or would send them elsewhere."""
    remedy = "`chatqueue down` stops it; another CHATQUEUE_HOME has a stack of its own"
    if info.database != registry.database_name(settings):
        raise StackError(f"the stack that is up uses another database, {info.database}: {remedy}")
    if (info.simulator_url is not None) != simulator:
        used, wanted = ("the API", "the simulator") if simulator else ("the simulator", "the API")
        raise StackError(f"the stack that is up calls {used}, not {wanted}: {remedy}")


def _stop_holder(home: Home, deadline: float) -> None:
    """Ask who holds the lock to stop, once, and wait for its end, not for that of a later one."""
    asked: Holder | None = None
    while (held := registry.holder(home)) is not None and asked in {None, held}:
        if asked is None and _terminate(held.identity):
            asked = held
        if monotonic() > deadline:
            raise StackError(f"the embedded stack does not stop (process {held.identity.pid})")
        sleep(POLL_SECONDS)
    while asked is not None and asked.identity.find() and monotonic() < deadline:
        sleep(POLL_SECONDS)  # it has let go of the lock, and ends now


def _terminate(identity: Identity) -> bool:
    process = identity.find()
    try:
        if process is not None:
            process.terminate()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied as error:
        raise StackError(f"the stack (process {identity.pid}) belongs to another user") from error
    return process is not None


def _stop_seconds(settings: Settings) -> float:
    return settings.drain_seconds + DRAIN_MARGIN_SECONDS + _STOP_MARGIN_SECONDS


def _options(workers: int, *, flower: bool, simulator: bool) -> tuple[str, ...]:
    flower_option = "--flower" if flower else "--no-flower"
    simulator_option = "--simulator" if simulator else "--no-simulator"
    return ("--workers", str(workers), flower_option, simulator_option)
