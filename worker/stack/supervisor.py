"""The supervisor: starts the parts of a stack, keeps them running, stops them in order.

`supervise` is the body of `python -m worker up`; it runs in the main thread of a process of its
own. It holds the stack's lock for as long as it lives, publishes what runs once all of it works,
and stops at a signal, or when whoever started it and every other user are gone. It knows no job.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from time import monotonic
from typing import Final

import structlog

from worker.errors import StackError
from worker.settings import Settings
from worker.stack import registry, valkey
from worker.stack.home import Home
from worker.stack.notices import Notices
from worker.stack.parts import Part, Plan, Stage
from worker.stack.processes import Identity, Running, end
from worker.stack.registry import StackInfo, Users

LONGEST_PAUSE_SECONDS: Final = 30.0
_HURRY_SECONDS: Final = 2.0
_STEADY_SECONDS: Final = 60.0
_TICK_SECONDS: Final = 0.5
_LEFTOVER_GRACE_SECONDS: Final = 10.0

LOG = structlog.get_logger(__name__)


def supervise(
    settings: Settings,
    plan: Callable[[], Plan],
    *,
    lifeline_fd: int | None = None,
    on_ready: Callable[[StackInfo], None] | None = None,
) -> None:
    """Run a stack until it is to stop. Returns when nothing of it runs any more.

    `plan` is called once the lock is held and what a killed supervisor left is gone; for the real
    stack it is `partial(arrange, settings, …)`. `on_ready` is called once, when all parts work.
    Raises StackError when another supervisor runs this home, or a part does not start; the message
    has the end of its log.
    """
    home = Home(settings.home)
    home.prepare()
    with Notices(lifeline_fd) as notices, registry.hold(home) as token:
        clear_leftovers(home)
        arranged = plan()
        for note in arranged.notes:
            LOG.warning("stack_note", note=note)
        describe = _describer(arranged, settings, token, owned=lifeline_fd is not None)
        Supervisor(home, arranged, notices, describe).run(on_ready)


def clear_leftovers(home: Home) -> bool:
    """End what a killed supervisor left; with the lock held. Tell whether there was anything.

    Its Python parts end by their lifeline: here they are only waited for, and hurried.
    """
    info = registry.recorded(home)
    brokers = set(valkey.leftovers(home))
    recorded = {identity.find() for identity in (info.parts.values() if info else ())}
    others = {process for process in recorded if process} - brokers
    if others or brokers:
        LOG.warning("leftovers_found", pids=sorted(process.pid for process in others | brokers))
    end(others, _LEFTOVER_GRACE_SECONDS)
    end(brokers, _LEFTOVER_GRACE_SECONDS)
    registry.withdraw(home)
    return bool(others or brokers)


def _describer(
    plan: Plan, settings: Settings, token: str, *, owned: bool
) -> Callable[[dict[str, Identity]], StackInfo]:
    started_at = datetime.now(UTC)

    def describe(parts: dict[str, Identity]) -> StackInfo:
        return StackInfo(
            token=token,
            version=version("chatqueue"),
            started_at=started_at,
            supervisor=Identity.of(os.getpid()),
            parts=parts,
            broker_url=plan.broker_url,
            flower_url=plan.flower_url,
            simulator_url=plan.simulator_url,
            database=registry.database_name(settings),
            owned=owned,
            notes=plan.notes,
        )

    return describe


@dataclass(slots=True)
class _Post:
    """A part and what fills it now: a process, or a pause before the next one."""

    part: Part
    running: Running | None = None
    failures: int = 0
    due_at: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """The parts of one plan, from their start to their end; `run` is all there is to call."""

    home: Home
    plan: Plan
    notices: Notices
    describe: Callable[[dict[str, Identity]], StackInfo]
    _posts: list[_Post] = field(init=False)
    _lifeline: tuple[int, int] = field(init=False)
    _users: Users = field(init=False)

    def __post_init__(self) -> None:
        self._posts = [_Post(part) for part in self.plan.parts]

    def run(self, on_ready: Callable[[StackInfo], None] | None) -> None:
        """Start all, keep all, stop all. Raises StackError when a part does not start."""
        self._lifeline = os.pipe()
        self._users = Users(self.home)
        try:
            if self._start():
                info = self._publish()
                LOG.info("stack_ready", parts=len(self._posts), flower=info.flower_url)
                if on_ready is not None:
                    on_ready(info)
                self._keep()
        finally:
            self._stop()
            self._users.leave()
            for fd in self._lifeline:
                os.close(fd)

    def _start(self) -> bool:
        """Start the broker, then the rest together. False: asked to stop meanwhile."""
        first = [post for post in self._posts if post.part.stage is Stage.BROKER]
        rest = [post for post in self._posts if post.part.stage is not Stage.BROKER]
        return all(self._bring_up(posts) for posts in (first, rest))

    def _bring_up(self, posts: Iterable[_Post]) -> bool:
        waiting = list(posts)
        for post in waiting:
            self._launch(post)
        while waiting:
            if self._asked():
                return False
            waiting = [post for post in waiting if not self._works(post)]
            self.notices.wait(0.02 if waiting else 0)
        return True

    def _works(self, post: _Post) -> bool:
        part, running = post.part, post.running
        if running is None or not running.alive:
            status = running.process.returncode if running else "unknown"
            raise self._failure(part, f"ended with status {status} while starting")
        if running.ready():
            return True
        if monotonic() > running.started_at + part.start_seconds:
            raise self._failure(part, f"was not ready within {part.start_seconds:g} s")
        return False

    def _failure(self, part: Part, what: str) -> StackError:
        log = self.home.log(part.name)
        return StackError(f"{part.name} {what}. The end of {log}:\n{self.home.tail(part.name)}")

    def _launch(self, post: _Post) -> None:
        try:
            post.running = Running.start(post.part, self.home, self._lifeline[0])
        except OSError as error:
            raise StackError(f"{post.part.name} cannot be started: {error}") from error
        LOG.info("part_started", part=post.part.name, pid=post.running.identity.pid)

    def _publish(self) -> StackInfo:
        filled = ((post.part.name, post.running) for post in self._posts)
        info = self.describe({name: running.identity for name, running in filled if running})
        registry.publish(self.home, info)
        return info

    def _asked(self) -> bool:
        if self.notices.requests:
            return True
        # Once shut out, users stay so until this process ends: none can join a stopping stack.
        return self.notices.lost and self._users.shut_out()

    def _keep(self) -> None:
        while not self._asked():
            mended = [self._mend(post) for post in self._posts]
            if any(mended):
                self._publish()
            self.notices.wait(_TICK_SECONDS)

    def _mend(self, post: _Post) -> bool:
        """Note a death, end a pause. Tell whether another process fills the post now."""
        if post.running is not None and not post.running.alive:
            self._mourn(post, post.running)
        if post.running is not None or monotonic() < post.due_at:
            return False
        try:
            self._launch(post)
        except StackError as error:
            self._pause(post, reason=str(error))
        return post.running is not None

    def _mourn(self, post: _Post, died: Running) -> None:
        died.close()
        post.running = None
        if monotonic() - died.started_at > _STEADY_SECONDS:
            post.failures = 0
        self._pause(post, reason=f"ended with status {died.process.returncode}")

    def _pause(self, post: _Post, reason: str) -> None:
        seconds = min(2.0**post.failures, LONGEST_PAUSE_SECONDS)
        post.failures += 1
        post.due_at = monotonic() + seconds
        LOG.warning("part_died", part=post.part.name, reason=reason, restart_in_seconds=seconds)

    def _stop(self) -> None:
        registry.withdraw(self.home)
        for stage in sorted(Stage, reverse=True):
            self._end([p.running for p in self._posts if p.running and p.part.stage is stage])
        LOG.info("stack_stopped")

    def _end(self, group: list[Running]) -> None:
        """Ask all of a stage to end, wait for the slowest, kill who does not."""
        begun = monotonic()
        for running in group:
            running.terminate()
        for running in group:
            self._await_end(running, begun)

    def _await_end(self, running: Running, begun: float) -> None:
        while running.alive:
            left = self._deadline(begun, running.part) - monotonic()
            if left <= 0:
                LOG.warning("part_killed", part=running.part.name)
                running.kill()
            else:
                self.notices.wait(min(left, _TICK_SECONDS))
        running.close()

    def _deadline(self, begun: float, part: Part) -> float:
        patient = begun + part.grace_seconds
        hurried = self.notices.hurried_at
        return patient if hurried is None else min(patient, max(begun, hurried) + _HURRY_SECONDS)
