"""What one endpoint lets one key do with one model: learnt from headers and refusals. Pure.

Three limits are kept: requests a minute, tokens a minute, calls in flight. What headers state is
believed; what they leave out is learnt from 429s: down by a share at once (multiplicative
decrease), up again slowly (additive increase), the slower the longer the server asked to wait.
The state is a value that travels as JSON; the time (seconds of the shelf's clock) is given.
"""

import math
from dataclasses import dataclass
from typing import Final

import msgspec

LEAST_BURST: Final = 2.0
BURST_SECONDS: Final = 1.0
"""A bucket holds what its limit gives in this time: calls come evenly, so no window overflows."""

CUT: Final = 0.9
"""How much is used of a limit that a refusal has shown."""

GROWTH_PER_SECOND: Final = 0.01
GROWTH_DOUBLES_SECONDS: Final = 10.0
"""What was cut grows by this share, and by as much again after each such time without a refusal."""

EVIDENCE: Final = 10
"""A limit is taken from what was let through only if that was so many calls."""

LITTLE_A_MINUTE: Final = 60.0
LITTLE_IN_FLIGHT: Final = 4.0
"""With less evidence than that, one refusal leaves so much; more of them halve it."""

GUESS_GROWTH_PER_SECOND: Final = 0.3
GUESS_HOLD_SECONDS: Final = 2.0
"""What was only guessed is soon tried again: it may have been one refusal among thousands."""

STRAY_SHARE: Final = 0.01
STRAY_SECONDS: Final = 10.0
"""Refusals that are no more than this share of the calls of ten to twenty seconds, and that name no
limit, are strays, such as a busy server strews: a limit that is met refuses more."""

UNLIMITED: Final = 1e9
"""What has grown to this limits nothing."""

LEAST_HOLD_SECONDS: Final = 5.0
HOLD_PER_WAIT: Final = 10.0
"""After a refusal nothing grows for this many times the wait it cost: probing stays cheap."""

OPENING_SECONDS: Final = 1.0
"""A meter that nobody has proved yet lets one call through in this time, then two, four, …"""

SETBACK_SECONDS: Final = 5.0
"""A clock that is so far behind what it was has been set back."""

SEEN_SECONDS: Final = 15.0
"""A worker that has said nothing for so long has no calls in flight any more."""

CROWDED_WAIT_SECONDS: Final = 0.1
"""How soon to ask again where the calls in flight are too many: nobody knows when one ends."""

LEAST_TOKENS: Final = 1e-9

LONGEST_WAIT_SECONDS: Final = 5.0
"""How soon to ask again at the latest where a limit was learnt: it grows meanwhile."""

_FIRST_TOKENS: Final = 500.0
"""What a call is taken to cost, in tokens, until one has told."""

_TOKENS_WEIGHT: Final = 0.1


class Bucket(msgspec.Struct):
    """So many units a minute, refilled evenly. A `limit` of 0 is none."""

    limit: float = 0.0
    level: float = 0.0

    @property
    def capacity(self) -> float:
        """The most it holds."""
        return max(LEAST_BURST, self.limit * BURST_SECONDS / 60)

    def refill(self, seconds: float, share: float) -> None:
        """Let time pass; `share` of the limit is used."""
        if self.limit:
            refilled = self.level + seconds * self.limit * share / 60
            self.level = min(self.capacity, refilled)

    def set_limit(self, limit: float) -> None:
        """Take a limit that was told; of an unknown bucket nothing is known to be left."""
        if not self.limit:
            self.level = 1.0
        self.limit = limit
        self.level = min(self.level, self.capacity)

    def seconds_until(self, units: float, share: float) -> float:
        """Until so many units are there."""
        missing = min(units, self.capacity) - self.level
        return max(0.0, missing * 60 / (self.limit * share)) if self.limit else 0.0


class Holder(msgspec.Struct):
    """The calls that one worker had in flight when it was last heard of."""

    at: float
    in_flight: int


class Late(msgspec.Struct):
    """How many calls were made and refused of late: since `began`, and in the time before that."""

    began: float = 0.0
    calls: float = 0.0
    refused: int = 0
    calls_before: float = 0.0
    refused_before: int = 0

    def turn(self, now: float) -> None:
        """Begin anew when it is time; what is older than the time before is forgotten."""
        if now - self.began < STRAY_SECONDS:
            return
        recent = now - self.began < 2 * STRAY_SECONDS
        self.calls_before = self.calls if recent else 0.0
        self.refused_before = self.refused if recent else 0
        self.began, self.calls, self.refused = now, 0.0, 0

    @property
    def are_strays(self) -> bool:
        """Whether the refusals are so few that they tell of no limit."""
        refused, calls = self.refused + self.refused_before, self.calls + self.calls_before
        return refused <= STRAY_SHARE * calls


class Meter(msgspec.Struct):
    """The state.

    `stated`: headers told the limit of requests; else it was learnt. `share`: how much of a stated
    limit is used, less after a refusal. `learnt_in_flight` is 0 where no refusal told of such a
    limit. `closed_until`: the server asked everybody to wait. Until a call begun after `opened_at`
    has `proved` that calls are let through, few are made (`opened` so far). `granted` counts calls
    since the last cut, the `cut_…` those of the time before it, to see what was let through then,
    under which limit; `guessed`: those were too few to tell, or it is far less than ever before.
    """

    at: float = 0.0
    requests: Bucket = msgspec.field(default_factory=Bucket)
    tokens: Bucket = msgspec.field(default_factory=Bucket)
    stated: bool = False
    share: float = 1.0
    learnt_in_flight: float = 0.0
    closed_until: float = 0.0
    cut_at: float = 0.0
    cut_granted: float = 0.0
    cut_refused: int = 0
    cut_seconds: float = 1.0
    cut_limit: float = 0.0
    guessed: bool = False
    hold_until: float = 0.0
    opened_at: float = 0.0
    opened: int = 0
    proved: bool = False
    tokens_per_call: float = _FIRST_TOKENS
    granted: float = 0.0
    late: Late = msgspec.field(default_factory=Late)
    holders: dict[str, Holder] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits that the settings set for each meter, a minute; 0: none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """What one call told of its limits.

    `refused`: it met a limit, and was not run. `proof`: it was let through. `wait_seconds`: what
    the server asked everybody to wait. `tokens`: what it cost. Limits and remainders are the
    headers', None where they say nothing.
    """

    refused: bool = False
    proof: bool = False
    wait_seconds: float | None = None
    tokens: int | None = None
    limit_requests: int | None = None
    remaining_requests: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """How many calls may be made now; where none, how long until it is worth asking again."""

    count: int
    wait_seconds: float = 0.0


def ask(meter: Meter, wanted: int, worker: str, caps: Caps, now: float) -> Leave:
    """Take leave for up to `wanted` calls, of a worker whose calls in flight `hold` has noted."""
    _pass_time(meter, caps, now)
    if now < meter.closed_until:
        return Leave(0, meter.closed_until - now)
    room, wait = _room(meter, in_flight(meter, now), now)
    count = min(wanted, room)
    meter.requests.level -= count
    meter.tokens.level -= count * meter.tokens_per_call
    meter.granted += count
    meter.late.calls += count
    meter.opened += 0 if meter.proved else count
    meter.holders[worker].in_flight += count
    return Leave(count, 0.0 if count else wait)


def hold(meter: Meter, worker: str, in_flight: int, now: float) -> None:
    """Note how many calls a worker has in flight."""
    _heed_setback(meter, now)
    meter.holders[worker] = Holder(now, in_flight)


def in_flight(meter: Meter, now: float) -> int:
    """The calls of all workers that were heard of of late."""
    late = [name for name, one in meter.holders.items() if one.at <= now - SEEN_SECONDS]
    for name in late:
        del meter.holders[name]
    return sum(one.in_flight for one in meter.holders.values())


def _room(meter: Meter, in_flight: int, now: float) -> tuple[int, float]:
    """How many calls there is room for, and the wait where there is none."""
    rooms: list[tuple[float, float]] = [(math.inf, 0.0)]
    if meter.requests.limit:
        wait = meter.requests.seconds_until(1.0, meter.share)
        rooms.append((meter.requests.level, min(wait, LONGEST_WAIT_SECONDS)))
    if meter.tokens.limit:
        # A limit of a few tokens a minute refills a bucket of less than any number can divide by.
        cost = max(min(meter.tokens_per_call, meter.tokens.capacity), LEAST_TOKENS)
        rooms.append((meter.tokens.level / cost, meter.tokens.seconds_until(cost, meter.share)))
    if meter.learnt_in_flight:
        rooms.append((meter.learnt_in_flight - in_flight, CROWDED_WAIT_SECONDS))
    if not meter.proved:
        rooms.append(_opening(meter, now))
    room, wait = min(rooms)
    # A hair below a whole call is one: time is not exact.
    whole = int(min(room, 1e9) + 1e-6)
    return max(0, whole), wait


def _opening(meter: Meter, now: float) -> tuple[float, float]:
    """Let few calls through until one has proved that they are wanted: one, then twice as many."""
    if not meter.opened:
        meter.opened_at = now
    steps = int((now - meter.opened_at) / OPENING_SECONDS)
    until_next = meter.opened_at + (steps + 1) * OPENING_SECONDS - now
    return 2.0 ** min(steps, 20) - meter.opened, max(until_next, 0.01)


def _pass_time(meter: Meter, caps: Caps, now: float) -> None:
    """Refill the buckets and let what was cut grow again, up to the present."""
    _heed_setback(meter, now)
    if not meter.at:
        meter.opened_at = meter.at = now
    passed = max(0.0, now - meter.at)
    meter.at = max(now, meter.at)
    meter.late.turn(now)
    _grow(meter, passed, now)  # before the caps, which nothing may outgrow
    for bucket, cap in (
        (meter.requests, caps.requests_per_minute),
        (meter.tokens, caps.tokens_per_minute),
    ):
        if cap and (not bucket.limit or bucket.limit > cap):
            bucket.set_limit(float(cap))
        bucket.refill(passed, meter.share)


def _heed_setback(meter: Meter, now: float) -> None:
    """Where the clock has been set back, set back all moments with it: else they never come."""
    seconds = meter.at - now
    if seconds < SETBACK_SECONDS:
        return
    meter.at = now
    meter.closed_until -= seconds
    meter.cut_at -= seconds
    meter.hold_until -= seconds
    meter.opened_at -= seconds
    meter.late.began -= seconds
    for one in meter.holders.values():
        one.at -= seconds


def _grow(meter: Meter, passed: float, now: float) -> None:
    """Try a little more of what refusals have cut, once their hold is over."""
    free = now - meter.hold_until
    if free <= 0:
        return
    pace = GROWTH_PER_SECOND * (1 + free / GROWTH_DOUBLES_SECONDS)
    grown = min(passed, free) * (max(pace, GUESS_GROWTH_PER_SECOND) if meter.guessed else pace)
    meter.share = min(1.0, meter.share + grown)
    if not meter.stated:
        meter.requests.limit = min(meter.requests.limit * (1 + grown), UNLIMITED)
    if meter.learnt_in_flight:
        more = max(meter.learnt_in_flight, 1.0) * grown
        meter.learnt_in_flight = min(meter.learnt_in_flight + more, UNLIMITED)


def tell(meter: Meter, told: Told, began_at: float, caps: Caps, now: float) -> None:
    """Take in what a call that began then has told."""
    _pass_time(meter, caps, now)
    _heed_headers(meter, told, caps)
    if told.refused:
        _heed_refusal(meter, told, began_at, now)
    elif told.proof:
        meter.proved = meter.proved or began_at >= meter.opened_at
    if told.tokens is not None:
        _learn_cost(meter, told.tokens)


def _heed_refusal(meter: Meter, told: Told, began_at: float, now: float) -> None:
    meter.late.refused += 1
    names_limit = 0 in {told.remaining_requests, told.remaining_tokens}
    if meter.late.are_strays and not names_limit:
        return  # the job that met it waits; nobody else need
    _cut(meter, told, began_at, now)
    if told.wait_seconds:
        meter.closed_until = max(meter.closed_until, now + told.wait_seconds)


def _heed_headers(meter: Meter, told: Told, caps: Caps) -> None:
    for bucket, limit, left, cap in (
        (
            meter.requests,
            told.limit_requests,
            told.remaining_requests,
            caps.requests_per_minute,
        ),
        (meter.tokens, told.limit_tokens, told.remaining_tokens, caps.tokens_per_minute),
    ):
        if limit:
            bucket.set_limit(float(min(limit, cap) if cap else limit))
        if limit and left is not None:
            bucket.level = min(bucket.level, float(left))
    meter.stated = meter.stated or bool(told.limit_requests)


def _cut(meter: Meter, told: Told, began_at: float, now: float) -> None:
    """Use less of the limit that was met.

    One refusal begins a cut; those of the calls that were under way then only tell how deep it is.
    """
    is_first = began_at >= meter.cut_at
    if is_first:
        since = max(meter.cut_at, meter.opened_at)
        meter.cut_granted, meter.cut_refused = meter.granted, 0
        meter.cut_seconds = max(1.0, now - since)
        meter.cut_at, meter.granted = now, 0.0
        meter.cut_limit = meter.requests.limit
        if meter.stated and told.remaining_requests == 0:
            meter.share = max(0.1, meter.share * CUT)
    meter.cut_refused += 1
    meter.guessed = (
        meter.cut_granted - meter.cut_refused < EVIDENCE or _let_in(meter) < meter.cut_limit / 2
    )
    meter.hold_until = meter.cut_at + _hold_seconds(meter, told)
    meter.requests.level = min(meter.requests.level, 0.0)
    if not meter.stated:
        _learn_rate(meter, is_first=is_first)
    if told.remaining_requests != 0 and told.remaining_tokens != 0:
        # What was met may as well be a limit of calls in flight: those left were let in.
        known = meter.learnt_in_flight or math.inf
        let_in = in_flight(meter, now) * CUT
        if meter.guessed:
            let_in = max(let_in, min(LITTLE_IN_FLIGHT, known / 2 if is_first else known))
        meter.learnt_in_flight = max(1.0, min(known, let_in))


def _hold_seconds(meter: Meter, told: Told) -> float:
    wait = told.wait_seconds or 0.0
    if meter.guessed:
        return max(GUESS_HOLD_SECONDS, wait)
    return max(LEAST_HOLD_SECONDS, HOLD_PER_WAIT * wait)


def _learn_rate(meter: Meter, *, is_first: bool) -> None:
    """Take for the limit what was let through before the cut."""
    known = meter.requests.limit or math.inf
    let_in = _let_in(meter)
    if meter.guessed:
        let_in = max(let_in, min(LITTLE_A_MINUTE, known / 2 if is_first else known))
    meter.requests.set_limit(max(1.0, min(known, let_in)))


def _let_in(meter: Meter) -> float:
    """What was let through a minute before the cut, less what is left unused of a limit."""
    return (meter.cut_granted - meter.cut_refused) * 60 / meter.cut_seconds * CUT


def _learn_cost(meter: Meter, tokens: int) -> None:
    if meter.tokens.limit:
        meter.tokens.level += meter.tokens_per_call - tokens
    first = meter.tokens_per_call == _FIRST_TOKENS
    weight = 1.0 if first else _TOKENS_WEIGHT
    meter.tokens_per_call += weight * (tokens - meter.tokens_per_call)


def give_back(meter: Meter, count: int) -> None:
    """Give back leave that was not used (or, below 0, take what was used beyond it)."""
    meter.requests.level += count
    meter.tokens.level += count * meter.tokens_per_call
    meter.granted -= count
    meter.late.calls -= count
    if not meter.proved:
        meter.opened = max(0, meter.opened - count)
