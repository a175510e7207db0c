"""The plan of a proof: what work is handed in, and what trouble is made, at which moments.

Made by `worker.prove.scenario` before anything is started. Pure: the same options and the same seed
give the same plan. How the trouble is made, `worker.prove.turmoil` knows.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

SLOTS: Final = 8
"""Calls in flight of one worker process, for batches."""

INTERACTIVE_SLOTS: Final = 2
"""The same for single jobs."""

LEASE_SECONDS: Final = 3.0
CLOCK_JUMP_SECONDS: Final = 3_600.0

_EVERY_SECONDS: Final = 15.0
"""In each so long piece of the turmoil each kind of trouble comes once."""

_BATCHES: Final = 5
_SINGLES: Final = 0.15
_STREAMED: Final = 0.3
_BUSY: Final = 0.6
"""How much of the time of all slots the work would take, were there no trouble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How large a proof is. `seconds` is the length of the turmoil."""

    seed: int
    jobs: int = 1_000
    workers: int = 3
    seconds: float = 60.0


class Trouble(StrEnum):
    """The kinds of trouble."""

    KILL = "worker killed"
    KILL_TWO = "two workers killed"
    STOP = "worker stopped"
    FREEZE = "worker frozen"
    BROKER_DOWN = "broker down"
    BROKER_EMPTIED = "broker emptied"
    DATABASE_AWAY = "database away"
    DUPLICATES = "messages repeated"
    RATE_LIMIT = "429 storm"
    CUT_STREAMS = "answers cut off"
    CLOCK_JUMP = "clock jump"


@dataclass(frozen=True, slots=True)
class Event:
    """Trouble that begins `at` seconds after the start and lasts for `seconds`.

    `workers`: the places of all workers, in the order in which it strikes those that run.
    `jump_seconds` is how far the database's clock goes.
    """

    at: float
    kind: Trouble
    seconds: float = 0.0
    workers: tuple[int, ...] = ()
    jump_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Handover:
    """Work handed in `at` seconds after the start: a batch of `name`, or a single job (None)."""

    at: float
    name: str | None
    bodies: tuple[dict[str, Any], ...]
    cancel_after: float | None = None

    @property
    def custom_ids(self) -> tuple[str, ...]:
        """What the jobs of a batch are called."""
        return tuple(f"{self.name}-{number}" for number in range(len(self.bodies)))

    def lines(self) -> Iterator[bytes]:
        """Give the lines of a batch's file."""
        for custom_id, body in zip(self.custom_ids, self.bodies, strict=True):
            line = {
                "custom_id": custom_id,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            yield json.dumps(line).encode()


@dataclass(frozen=True, slots=True)
class Plan:
    """Work and trouble, each in the order of their moments."""

    options: Options
    handovers: tuple[Handover, ...]
    events: tuple[Event, ...]
    latency_seconds: float = field(default=0.0)

    @property
    def jobs(self) -> int:
        """How many jobs are handed in."""
        return sum(len(one.bodies) for one in self.handovers)


def make_plan(options: Options) -> Plan:
    """Make the plan of these options."""
    dice = random.Random(options.seed)  # noqa: S311  # repeatable, guards nothing
    slots = options.workers * (SLOTS + INTERACTIVE_SLOTS)
    latency = _BUSY * slots * options.seconds / options.jobs
    return Plan(
        options,
        tuple(sorted(_handovers(options, dice), key=lambda one: one.at)),
        tuple(sorted(_events(options, dice), key=lambda one: one.at)),
        min(max(latency, 0.05), 3.0),
    )


# --- work -----------------------------------------------------------------------------------------


def _handovers(options: Options, dice: random.Random) -> Iterator[Handover]:
    singles = max(1, int(options.jobs * _SINGLES))
    in_batches = options.jobs - singles
    sizes = [in_batches // _BATCHES] * (_BATCHES - 1)
    sizes.append(in_batches - sum(sizes))
    begins = [0.0, *(dice.uniform(0.0, 0.6) * options.seconds for _ in sizes[1:])]
    for number, (size, at) in enumerate(zip(sizes, begins, strict=True), 1):
        is_last = number == _BATCHES
        yield Handover(
            at,
            f"batch-{number}",
            tuple(_body(f"{number}-{one}", options, dice) for one in range(size)),
            dice.uniform(1.0, 0.3 * options.seconds) if is_last else None,
        )
    for number in range(singles):
        at = dice.uniform(0.0, 0.95) * options.seconds
        yield Handover(at, None, (_body(f"single-{number}", options, dice),))


def _body(name: str, options: Options, dice: random.Random) -> dict[str, Any]:
    question = f"{name} of {options.seed}"
    body = {"model": "gpt-5.1", "messages": [{"role": "user", "content": question}]}
    return body | {"stream": True} if dice.random() < _STREAMED else body


# --- trouble --------------------------------------------------------------------------------------

_LASTS: Final = {
    Trouble.KILL: (0.0, 3.0),
    Trouble.KILL_TWO: (0.0, 3.0),
    Trouble.STOP: (0.0, 1.0),
    Trouble.FREEZE: (1.2 * LEASE_SECONDS, 3.0 * LEASE_SECONDS),
    Trouble.BROKER_DOWN: (0.5, 4.0),
    Trouble.DATABASE_AWAY: (0.5, 4.0),
    Trouble.RATE_LIMIT: (1.0, 4.0),
    Trouble.CUT_STREAMS: (1.0, 4.0),
}
"""How many seconds, from and to, until a worker is there again or a trouble is over."""


def _events(options: Options, dice: random.Random) -> Iterator[Event]:
    rounds = max(1, round(options.seconds / _EVERY_SECONDS))
    length = options.seconds / rounds
    for number in range(rounds):
        for kind in Trouble:
            at = (number + dice.uniform(0.1, 0.95)) * length
            yield _event(kind, at, options.workers, dice)


def _event(kind: Trouble, at: float, workers: int, dice: random.Random) -> Event:
    order = tuple(dice.sample(range(workers), k=workers))
    lasts = dice.uniform(*_LASTS.get(kind, (0.0, 0.0)))
    jump = dice.choice((-1, 1)) * CLOCK_JUMP_SECONDS if kind is Trouble.CLOCK_JUMP else 0.0
    return Event(at, kind, lasts, order, jump)
