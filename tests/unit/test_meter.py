import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.gate_world import Server, Stormy, Strewing, Windowed, World
from worker.gate import meter
from worker.gate.meter import Bucket, Caps, Leave, Meter, Told

START = 1_000.0
NO_CAPS = Caps()
PROOF = Told(proof=True)


def ask(state: Meter, wanted: int, now: float, caps: Caps = NO_CAPS, worker: str = "w") -> Leave:
    """Ask as a worker without calls in flight."""
    meter.hold(state, worker, 0, now)
    return meter.ask(state, wanted, worker, caps, now)


def proved(now: float = START, **told: Any) -> Meter:
    """A meter under which a call was let through, that told this."""
    state = Meter()
    assert ask(state, 1, now).count == 1
    meter.tell(state, Told(proof=True, **told), now, NO_CAPS, now)
    meter.hold(state, "w", 0, now)
    return state


# --- what always holds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Some time passes; so many calls are asked for; a call that began some time ago tells this."""

    seconds: float
    wanted: int
    worker: str
    begun_ago: float
    told: Told | None
    back: int


some = st.none() | st.integers(0, 5_000)
tolds = st.builds(
    Told,
    refused=st.booleans(),
    proof=st.booleans(),
    wait_seconds=st.none() | st.floats(0, 120),
    tokens=st.none() | st.integers(0, 10_000),
    limit_requests=some,
    remaining_requests=some,
    limit_tokens=some,
    remaining_tokens=some,
)
steps = st.lists(
    st.builds(
        Step,
        st.floats(0, 30),
        st.integers(0, 1_000),
        st.sampled_from("ab"),
        st.floats(0, 10),
        st.none() | tolds,
        st.integers(0, 3),
    ),
    max_size=40,
)
every_caps = st.builds(Caps, st.integers(0, 1_000), st.integers(0, 100_000))


@given(steps, every_caps)
def test_never_is_more_granted_than_wanted_and_no_number_gets_out_of_hand(
    steps: Sequence[Step], caps: Caps
) -> None:
    state, now = Meter(), START
    for one in steps:
        now += one.seconds
        leave = ask(state, one.wanted, now, caps, one.worker)
        assert 0 <= leave.count <= one.wanted
        assert leave.wait_seconds >= 0
        if one.told is not None:
            meter.tell(state, one.told, now - one.begun_ago, caps, now)
        meter.give_back(state, min(one.back, leave.count))
        numbers = (
            state.requests.level, state.requests.limit, state.tokens.level, state.tokens.limit,
            state.share, state.learnt_in_flight, state.granted, state.tokens_per_call,
            leave.wait_seconds,
        )  # fmt: skip
        assert all(map(math.isfinite, numbers))
        assert 0.1 <= state.share <= 1
        assert 0 <= state.requests.limit <= meter.UNLIMITED
        assert state.opened >= 0


@given(steps, every_caps)
def test_a_state_survives_being_written_down(steps: Sequence[Step], caps: Caps) -> None:
    state, now = Meter(), START
    for one in steps:
        now += one.seconds
        ask(state, one.wanted, now, caps, one.worker)
        if one.told is not None:
            meter.tell(state, one.told, now - one.begun_ago, caps, now)
    assert msgspec.json.decode(msgspec.json.encode(state), type=Meter) == state


@given(steps, st.integers(1, 3_000))
def test_no_minute_has_more_calls_than_the_stated_limit_and_its_burst(
    steps: Sequence[Step], limit: int
) -> None:
    state, now = proved(limit_requests=limit), START
    granted: list[tuple[float, int]] = []
    for one in steps:
        now += one.seconds
        granted.append((now, ask(state, one.wanted, now, worker=one.worker).count))
        if one.told is not None:
            told = replace(one.told, limit_requests=limit, wait_seconds=None)
            meter.tell(state, told, now - one.begun_ago, NO_CAPS, now)
    burst = Bucket(limit).capacity
    for begin, _ in granted:
        made = sum(count for at, count in granted if begin <= at < begin + 60)
        assert made <= limit + burst + 1e-3


# --- what workers make of a server ----------------------------------------------------------------


@pytest.mark.parametrize("burst", [None, 10.0], ids=["a full bucket", "a small bucket"])
def test_a_stated_limit_is_used_up_and_never_met(burst: float | None) -> None:
    server = Server(requests_per_minute=600, burst=burst)
    world = World(server, workers=8, slots=256).run(130)
    assert world.rate(10, 130) >= 0.95 * 10
    assert [at for at in world.refused if at > 10] == []


def test_a_stated_limit_is_used_up_by_a_single_worker_as_well() -> None:
    world = World(Server(requests_per_minute=600), workers=1, slots=256).run(70)
    assert world.rate(10, 70) >= 0.95 * 10
    assert not world.refused


@pytest.mark.parametrize("limit", [600, 6_000])
@pytest.mark.parametrize("burst_seconds", [60, 1], ids=["a full bucket", "a small bucket"])
def test_a_limit_that_nobody_tells_is_learnt(limit: int, burst_seconds: int) -> None:
    burst = limit / 60 * burst_seconds
    server = Server(requests_per_minute=limit, tells=False, burst=burst)
    world = World(server, workers=8, slots=256).run(360)
    assert world.refused_share(30, 360) <= 0.02
    assert world.rate(120, 360) >= 0.8 * limit / 60


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_limit_of_calls_in_flight_is_learnt(workers: int) -> None:
    server = Server(in_flight_limit=50, latency=2)
    world = World(server, workers=workers, slots=256).run(240)
    assert world.refused_share(30, 240) <= 0.02
    assert world.rate(30, 240) >= 0.65 * 50 / 2


@dataclass
class Hiccup(Server):
    """A server without limits that turns its first call away all the same."""

    calls: int = 0

    def admit(self, now: float) -> Told | None:
        self.calls += 1
        if self.calls == 1:
            return Told(refused=True, wait_seconds=self.wait_seconds)
        return super().admit(now)


@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_one_refusal_among_the_first_calls_is_soon_made_good(wait: float) -> None:
    world = World(Hiccup(latency=0.5, wait_seconds=wait), workers=2, slots=256).run(40)
    (at,) = world.refused
    assert world.rate(at + 15, at + 20) >= 10 * max(world.rate(at, at + 3), 1)


@pytest.mark.parametrize(
    ("workers", "slots", "latency"), [(3, 8, 0.7), (3, 10, 2.0), (4, 250, 1.0)]
)
@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_a_short_storm_of_refusals_is_soon_got_over(
    workers: int, slots: int, latency: float, wait: float
) -> None:
    """What so few calls told, or what contradicts all before, is no limit to be kept for long."""
    for seed in range(3):
        dice = random.Random(seed)  # noqa: S311  # repeatable, guards nothing
        server = Stormy(wait_seconds=wait, latency=latency, dice=dice)
        world = World(server, workers=workers, slots=slots).run(70)
        assert world.refused
        assert world.rate(60, 70) >= 0.9 * world.rate(10, 20)
        assert max(world.refused) < 25


@pytest.mark.parametrize("slots", [100, 500])
@pytest.mark.parametrize("wait", [0.0, 1.0, 20.0])
def test_refusals_that_are_strewn_among_many_answers_hold_nobody(slots: int, wait: float) -> None:
    for seed in range(3):
        dice = random.Random(seed)  # noqa: S311  # repeatable, guards nothing
        server = Strewing(wait_seconds=wait, latency=0.5, dice=dice)
        world = World(server, workers=1, slots=slots).run(150)
        assert len(world.refused) > 10
        assert world.rate(30, 150) >= 0.7 * slots / 0.6  # a slot is filled a tenth later


@pytest.mark.parametrize("limit", [60, 600])
@pytest.mark.parametrize("wait", [0.0, 1.0, 20.0])
def test_a_limit_counted_by_the_minute_is_used_up(limit: int, wait: float) -> None:
    server = Windowed(requests_per_minute=limit, wait_seconds=wait, tells=False)
    world = World(server, workers=2, slots=50).run(600)
    assert world.rate(120, 600) >= 0.95 * limit / 60
    assert world.refused_share(120, 600) <= 0.2


def test_without_a_limit_all_slots_are_soon_in_use() -> None:
    world = World(Server(latency=1.0), workers=2, slots=50).run(20)
    assert world.rate(10, 20) >= 0.85 * 100


def test_the_settings_cap_what_the_server_would_allow() -> None:
    caps = Caps(requests_per_minute=120)
    for server in (Server(), Server(requests_per_minute=600)):
        world = World(server, workers=4, slots=256, caps=caps).run(130)
        assert 0.95 * 2 <= world.rate(10, 130) <= 1.02 * 2
        assert not world.refused


def test_the_settings_cap_tokens_by_what_calls_turn_out_to_cost() -> None:
    caps = Caps(tokens_per_minute=60_000)  # at 100 tokens a call: 10 calls a second
    world = World(Server(), workers=4, slots=256, caps=caps).run(160)
    assert 0.9 * 10 <= world.rate(40, 160) <= 1.02 * 10


# --- waits and openings ---------------------------------------------------------------------------


def test_calls_from_before_a_meter_was_lost_teach_the_new_one_no_rate() -> None:
    """As when Redis is emptied under load: what is told first began under the old one."""
    state = Meter()
    for n in range(20):
        meter.tell(state, PROOF, START - 1.0, NO_CAPS, START + n / 100)
    assert not state.proved
    assert ask(state, 10, START + 1.0).count == 1
    for n in range(20):
        told = Told(refused=True, wait_seconds=1.0)
        meter.tell(state, told, START + 1.0, NO_CAPS, START + 2.0 + n / 100)
    assert state.guessed
    assert state.requests.limit >= 30.0


def test_a_clock_that_is_set_back_makes_nobody_wait_for_it() -> None:
    state = proved()
    meter.tell(state, Told(refused=True, wait_seconds=5.0), START, NO_CAPS, START)
    earlier = START - 900.0
    assert ask(state, 1, earlier).count == 0
    assert ask(state, 1, earlier).wait_seconds == pytest.approx(5.0)
    assert ask(state, 1, earlier + 6.0).count == 1
    assert meter.in_flight(state, earlier + 6.0) == 1


def test_a_wait_that_was_asked_holds_everybody() -> None:
    state = proved()
    meter.tell(state, Told(refused=True, wait_seconds=7), START, NO_CAPS, START + 1)
    for worker in ("a", "b"):
        assert ask(state, 5, START + 3, worker=worker) == Leave(0, 5.0)
        assert ask(state, 5, START + 7.9, worker=worker).count == 0
    assert ask(state, 5, START + 8).count >= 1


def test_a_shorter_wait_does_not_end_a_longer_one() -> None:
    state = proved()
    for wait in (20, 1):
        told = Told(refused=True, wait_seconds=wait)
        meter.tell(state, told, START, NO_CAPS, START)
    assert ask(state, 1, START + 10) == Leave(0, 10.0)


def test_what_nobody_has_proved_opens_by_doubling() -> None:
    state = Meter()
    counts = [ask(state, 1_000, START + second).count for second in range(5)]
    assert counts == [1, 1, 2, 4, 8]  # 1, 2, 4, 8, 16 in all
    again = ask(state, 1_000, START + 4)
    assert again.count == 0
    assert again.wait_seconds == pytest.approx(1.0)


def test_a_call_that_was_let_through_opens_it_for_all() -> None:
    state = Meter()
    assert ask(state, 1_000, START).count == 1
    meter.tell(state, PROOF, START, NO_CAPS, START + 0.5)
    assert ask(state, 1_000, START + 0.5).count == 1_000


def test_a_failure_opens_nothing() -> None:
    state = Meter()
    ask(state, 1_000, START)
    meter.tell(state, Told(), START, NO_CAPS, START + 0.5)
    assert ask(state, 1_000, START + 0.5).count == 0


# --- cuts -----------------------------------------------------------------------------------------


def test_a_refused_call_that_began_before_the_cut_does_not_cut_again() -> None:
    state = proved(limit_requests=600)
    refused = Told(refused=True, limit_requests=600, remaining_requests=0)
    meter.tell(state, refused, START + 1, NO_CAPS, START + 2)
    share, hold_until = state.share, state.hold_until
    assert share == pytest.approx(meter.CUT)
    meter.tell(state, refused, START + 1.5, NO_CAPS, START + 2.5)
    assert (state.share, state.hold_until) == (share, hold_until)
    meter.tell(state, refused, START + 2.1, NO_CAPS, START + 2.6)
    assert state.share == pytest.approx(share * meter.CUT)


def test_the_longer_the_server_asks_to_wait_the_longer_nothing_grows() -> None:
    holds = []
    for wait in (0, 6):
        state = proved()
        for _ in range(3):
            assert ask(state, 100, START + 1).count == 100
        for _ in range(4):
            told = Told(refused=True, wait_seconds=wait)
            meter.tell(state, told, START + 1, NO_CAPS, START + 2)
        holds.append(state.hold_until - (START + 2))
    assert holds == pytest.approx([meter.LEAST_HOLD_SECONDS, 6 * meter.HOLD_PER_WAIT])


def test_a_refusal_that_names_requests_limits_no_calls_in_flight() -> None:
    state = proved(limit_requests=600)
    told = Told(refused=True, limit_requests=600, remaining_requests=0)
    meter.tell(state, told, START, NO_CAPS, START + 1)
    assert state.learnt_in_flight == 0


# --- what is left ---------------------------------------------------------------------------------


def test_a_remainder_that_is_told_lowers_what_is_left() -> None:
    state = proved(limit_requests=6_000)
    assert ask(state, 0, START + 5).count == 0  # full: a second's worth
    told = Told(proof=True, limit_requests=6_000, remaining_requests=3)
    meter.tell(state, told, START, NO_CAPS, START + 5)
    assert ask(state, 100, START + 5).count == 3


def test_leave_that_is_given_back_can_be_taken_again() -> None:
    state = proved(limit_requests=6_000)
    assert ask(state, 1_000, START + 5).count == 100
    assert ask(state, 1_000, START + 5).count == 0
    before = state.granted
    meter.give_back(state, 40)
    assert state.granted == before - 40
    assert ask(state, 1_000, START + 5).count == 40


def test_leave_of_an_opening_that_is_given_back_can_be_taken_again() -> None:
    state = Meter()
    assert ask(state, 10, START).count == 1
    meter.give_back(state, 1)
    assert ask(state, 10, START).count == 1


def test_what_was_used_beyond_the_leave_is_taken() -> None:
    state = proved(limit_requests=6_000)
    ask(state, 0, START + 5)
    meter.give_back(state, -30)
    assert ask(state, 1_000, START + 5).count == 70


def test_a_call_that_cost_more_than_was_thought_is_charged_for_it() -> None:
    state = proved(limit_tokens=60_000, tokens=100)
    cheap = ask(state, 1_000, START + 10).count
    meter.tell(state, Told(proof=True, tokens=1_100), START, NO_CAPS, START + 10)
    assert state.tokens.level == pytest.approx(1_000 - 100 * cheap - 1_000)
    assert state.tokens_per_call == pytest.approx(200)
    refusal = ask(state, 1, START + 10)
    assert refusal.count == 0
    assert refusal.wait_seconds == pytest.approx(1.2)


def test_a_call_dearer_than_the_bucket_goes_when_the_bucket_is_full() -> None:
    state = proved(limit_tokens=60, tokens=5_000)
    assert ask(state, 1, START + 1).count == 0
    later = [ask(state, 1, START + 10_000 + n) for n in range(2)]
    assert [one.count for one in later] == [1, 0]


@pytest.mark.parametrize("start", [START, 1.8e9], ids=["a young clock", "a real clock"])
@pytest.mark.parametrize("per_minute", [60, 6])
def test_where_a_cap_is_used_up_the_wait_is_told(start: float, per_minute: int) -> None:
    state, caps = Meter(), Caps(requests_per_minute=per_minute)
    ask(state, 1, start, caps)
    meter.tell(state, PROOF, start, caps, start + 0.1)
    last = [ask(state, 10, start + seconds, caps) for seconds in (0.2, 0.3)][-1]
    assert last.count == 0
    assert last.wait_seconds >= 0.5


# --- calls in flight ------------------------------------------------------------------------------


def crowded(limit: float) -> Meter:
    state = proved()
    state.learnt_in_flight = limit
    state.hold_until = START + 1_000
    return state


def test_calls_of_all_workers_count_where_calls_in_flight_are_limited() -> None:
    state = crowded(10)
    meter.hold(state, "other", 7, START)
    assert ask(state, 10, START + 1).count == 3
    crowd = meter.ask(state, 10, "w", NO_CAPS, START + 1)
    assert crowd == Leave(0, meter.CROWDED_WAIT_SECONDS)


def test_a_worker_that_was_silent_for_long_holds_nothing_any_more() -> None:
    state = crowded(10)
    meter.hold(state, "dead", 10, START)
    assert ask(state, 10, START + meter.SEEN_SECONDS - 0.1).count == 0
    assert ask(state, 10, START + meter.SEEN_SECONDS).count == 10
    assert set(state.holders) == {"w"}


def test_a_worker_tells_anew_how_much_it_holds() -> None:
    state = crowded(10)
    meter.hold(state, "other", 10, START)
    meter.hold(state, "other", 2, START)
    assert meter.in_flight(state, START) == 2
