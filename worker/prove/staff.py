"""The processes of a proof: workers, which are killed, stopped and frozen, and the simulator.

All are commands of `chatqueue` in sessions of their own that end with a lifeline, whatever becomes
of this process. What was done to each worker process is written down: it is what its lost calls
are explained by.
"""

import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from worker.errors import StackError
from worker.settings import Settings
from worker.simulator import Call
from worker.stack.home import Home
from worker.stack.parts import Part
from worker.stack.processes import Running

COMMAND: Final = (sys.executable, "-m", "worker")
POLL_SECONDS: Final = 0.05
_START_SECONDS: Final = 60.0
_CONTROL_SECONDS: Final = 10.0
_URL: Final = re.compile(r"http://\S+")


class Fate(StrEnum):
    """What befell a worker process."""

    KILLED = "killed"
    STOPPED = "stopped"
    FROZEN = "frozen"
    DIED = "died"
    """Nothing was done, and it ended all the same."""
    STUCK = "stuck"
    """It was asked to stop and did not end in time."""


@dataclass(slots=True)
class Spell:
    """What befell a process, and from when until when; None: for good."""

    fate: Fate
    since: float
    until: float | None = None


@dataclass(slots=True)
class Posting:
    """One worker process, from its start to its end."""

    name: str
    pid: int
    spells: list[Spell] = field(default_factory=list)
    was_ready: bool = False

    @property
    def fates(self) -> set[Fate]:
        """Everything that befell it."""
        return {spell.fate for spell in self.spells}

    def was_gone(self, moment: float, margin_seconds: float = 0.0) -> bool:
        """Whether it could not be heard of at a moment, or so long before it."""
        return any(
            spell.since <= moment
            and (spell.until is None or moment <= spell.until + margin_seconds)
            for spell in self.spells
        )


@dataclass(slots=True)
class _Post:
    part: Part
    running: Running | None = None
    posting: Posting | None = None


class Staff:
    """The workers, by their places 0, 1, …; `postings` are all processes there ever were."""

    def __init__(
        self,
        home: Home,
        settings: Settings,
        names: Sequence[str],
        lifeline_fd: int,
        now: Callable[[], float],
    ) -> None:
        self._home = home
        self._now = now
        self._lifeline_fd = lifeline_fd
        self.postings: list[Posting] = []
        self._posts = [
            _Post(
                Part(
                    name=name,
                    command=(*COMMAND, "worker", "--name", name),
                    environment=settings.environment(),
                    folder=home.path,
                )
            )
            for name in names
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for post in self._posts:
            if post.running is not None:
                post.running.kill()
                post.running.close()
                post.running = None

    def start(self, place: int) -> None:
        """Start a worker where none runs."""
        post = self._posts[place]
        if post.running is None:
            post.running = Running.start(post.part, self._home, self._lifeline_fd)
            post.posting = Posting(post.part.name, post.running.process.pid)
            self.postings.append(post.posting)

    def start_all(self) -> None:
        """Start all and wait until they can work. Raises StackError with the log of one."""
        for place in range(len(self._posts)):
            self.start(place)
        deadline = time.monotonic() + _START_SECONDS
        for post in self._posts:
            while not self._ready(post):
                running = post.running
                if running is None or not running.alive or time.monotonic() > deadline:
                    log = self._home.tail(post.part.name)
                    raise StackError(f"{post.part.name} did not start:\n{log}")
                time.sleep(POLL_SECONDS)

    def serving(self, order: Sequence[int], count: int) -> list[int]:
        """Give the first so many of these places whose worker runs and is awake."""
        return [place for place in order if self._serves(self._posts[place])][:count]

    def _serves(self, post: _Post) -> bool:
        if post.running is None or post.posting is None or not post.running.alive:
            return False
        return self._ready(post) and Fate.STOPPED not in post.posting.fates

    def kill(self, place: int) -> int:
        """Kill a worker with all it started; return its process's number."""
        return self._strike(place, Fate.KILLED, Running.kill)

    def stop(self, place: int) -> int:
        """Ask a worker to stop."""
        return self._strike(place, Fate.STOPPED, Running.terminate)

    def freeze(self, place: int) -> int:
        """Let a worker not run any further."""
        return self._strike(place, Fate.FROZEN, lambda one: _signal(one, signal.SIGSTOP))

    def thaw(self, place: int) -> None:
        """Let it run on, if it is still there."""
        post = self._posts[place]
        if post.running is None or post.posting is None or not post.running.alive:
            return
        _signal(post.running, signal.SIGCONT)
        for spell in post.posting.spells:
            if spell.fate is Fate.FROZEN and spell.until is None:
                spell.until = self._now()

    def tend(self, place: int) -> bool:
        """Take note of a worker that has ended; tell whether its place is empty."""
        post = self._posts[place]
        self._ready(post)
        if post.running is not None and not post.running.alive:
            posting = post.posting
            if posting and posting.was_ready and not posting.fates - {Fate.FROZEN}:
                posting.spells.append(Spell(Fate.DIED, self._now()))
            post.running.close()
            post.running = post.posting = None
        return post.running is None

    def look_after(self, awaited: Collection[int] = ()) -> None:
        """Start anew what has ended by itself, as a supervisor does, but for these places."""
        for place in range(len(self._posts)):
            if place not in awaited and self.tend(place):
                self.start(place)

    def dismiss(self, seconds: float) -> None:
        """Ask all to stop, and wait for it; one that does not is killed."""
        for place, post in enumerate(self._posts):
            self.tend(place)
            if post.running is not None:
                self.thaw(place)
                self.stop(place)
        deadline = time.monotonic() + seconds
        for place, post in enumerate(self._posts):
            while not self.tend(place) and post.running and post.posting:
                if time.monotonic() > deadline:
                    post.posting.spells.append(Spell(Fate.STUCK, self._now()))
                    post.running.kill()
                time.sleep(POLL_SECONDS)

    def _strike(self, place: int, fate: Fate, how: Callable[[Running], None]) -> int:
        post = self._posts[place]
        if post.running is None or post.posting is None:
            raise StackError(f"no worker runs at place {place}")
        post.posting.spells.append(Spell(fate, self._now()))
        how(post.running)
        return post.posting.pid

    def _ready(self, post: _Post) -> bool:
        if post.running is None or post.posting is None:
            return False
        if not post.posting.was_ready:
            post.posting.was_ready = post.running.ready()
        return post.posting.was_ready


def _signal(running: Running, number: signal.Signals) -> None:
    running.process.send_signal(number)


class SimulatorProcess:
    """The simulator, which outlives every worker: what it was asked is evidence."""

    def __init__(self, home: Home, seed: int, lifeline_fd: int) -> None:
        self._home = home
        self._part = Part(
            name="simulator",
            command=(*COMMAND, "simulate", "--port=0", f"--seed={seed}"),
            environment=Settings.apart(home=home.path, log_format="json").environment(),
            probe=lambda: bool(_URL.search(home.tail("simulator"))),
            folder=home.path,
        )
        self._lifeline_fd = lifeline_fd
        self.url = ""

    def __enter__(self) -> Self:
        self._running = Running.start(self._part, self._home, self._lifeline_fd)
        deadline = time.monotonic() + _START_SECONDS
        while not self._running.ready():
            if not self._running.alive or time.monotonic() > deadline:
                log = self._home.tail("simulator")
                self._running.kill()
                raise StackError(f"the simulator did not start:\n{log}")
            time.sleep(POLL_SECONDS)
        found = _URL.search(self._home.tail("simulator"))
        self.url = found.group() if found else ""
        return self

    def __exit__(self, *_: object) -> None:
        self._running.kill()
        self._running.close()

    def behave(self, **fields: Any) -> None:
        """Change its behaviour for the calls that come from now on."""
        self._ask("POST", "/_simulator/behaviour", fields)

    def calls(self) -> list[Call]:
        """Give every call it received."""
        return msgspec.json.decode(self._ask("GET", "/_simulator/ledger"), type=list[Call])

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        address = urlsplit(self.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=_CONTROL_SECONDS)
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body))
            reply = connection.getresponse()
            answer = reply.read()
        except (OSError, HTTPException) as error:
            raise StackError(f"the simulator does not answer: {error}") from error
        finally:
            connection.close()
        if reply.status != 200:
            raise StackError(f"the simulator refused {path}: {answer.decode()}")
        return answer
