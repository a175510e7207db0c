import statistics

import pytest

from worker.errors import SettingsError
from worker.simulator import FAULTS, Behaviour
from worker.simulator.deliveries import CARRIED_OUT
from worker.simulator.fates import Fate, ScriptError, draw_fate, latency, read_script
from worker.simulator.faults import CONNECTION_FAULTS, RUNS_MODEL, STATUS_FAULTS
from worker.simulator.limits import Account, duration


def test_every_fault_is_carried_out_and_none_twice() -> None:
    assert set(CARRIED_OUT) == set(CONNECTION_FAULTS)
    assert not set(STATUS_FAULTS) & set(CONNECTION_FAULTS)
    assert RUNS_MODEL <= FAULTS


def test_all_fields_out_of_range_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Behaviour(latency_seconds=-1, fail_rate=1.5, faults=("nonsense",))
    named = {fault.partition(":")[0] for fault in caught.value.faults}
    assert named == {"latency_seconds", "fail_rate", "faults"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"latency": 1}, "latency: no such field"),
        ({"latency_seconds": "fast"}, "latency_seconds: Expected `float`, got `str`"),
        ({"max_in_flight": -1}, "max_in_flight: -1 is less than 0"),
        ({"fail_rate": float("nan")}, "fail_rate: nan is less than 0"),
    ],
)
def test_a_patch_that_is_wrong_names_its_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        Behaviour().patched(fields)


def test_a_patch_keeps_what_it_does_not_name() -> None:
    patched = Behaviour(seed=3).patched({"faults": ["500", "hang"], "credits": 5})
    assert patched == Behaviour(seed=3, faults=("500", "hang"), credits=5)


def test_the_share_of_failing_calls_is_the_fail_rate_and_repeats_with_the_seed() -> None:
    behaviour = Behaviour(fail_rate=0.2, faults=("500", "reset"))
    fates = [draw_fate(behaviour, number) for number in range(5000)]
    failed = [fate.fault for fate in fates if fate != Fate()]
    assert len(failed) == pytest.approx(1000, rel=0.15)
    assert failed.count("reset") == pytest.approx(len(failed) / 2, rel=0.15)
    assert fates == [draw_fate(behaviour, number) for number in range(5000)]
    assert fates != [draw_fate(behaviour.patched({"seed": 1}), n) for n in range(5000)]


def test_latencies_are_log_normal_around_the_median() -> None:
    behaviour = Behaviour(latency_seconds=2, latency_sigma=1.164)
    drawn = sorted(latency(behaviour, number) for number in range(20_000))
    assert statistics.median(drawn) == pytest.approx(2, rel=0.05)
    assert drawn[int(len(drawn) * 0.99)] == pytest.approx(30, rel=0.15)
    assert latency(Behaviour(latency_seconds=0.5), 1) == 0.5


def test_a_script_lists_what_happens_at_each_try() -> None:
    assert read_script("503+latency=0.2, hang,latency=1+ok,429+retry_after=0.1") == (
        Fate("503", latency_seconds=0.2),
        Fate("hang"),
        Fate(latency_seconds=1),
        Fate("429", retry_after_seconds=0.1),
    )


@pytest.mark.parametrize("script", ["", "5000", "latency=soon", "latency=-1", "ok,latency=inf"])
def test_a_script_that_cannot_be_read_is_refused(script: str) -> None:
    with pytest.raises(ScriptError, match=r"metadata\.simulate"):
        read_script(script)


def test_a_bucket_lets_in_its_limit_and_then_one_for_each_share_of_a_minute() -> None:
    account = Account(Behaviour(requests_per_minute=60), now=0)
    assert [account.admit(1, 1, now=0) for _ in range(60)] == [None] * 60
    refusal = account.admit(1, 1, now=0.25)
    assert refusal is not None
    assert refusal.outcome == "rate_limited"
    assert refusal.retry_after_seconds == pytest.approx(0.75)
    assert account.admit(1, 1, now=1) is None


def test_tokens_are_limited_and_a_call_above_the_limit_gets_in_alone() -> None:
    account = Account(Behaviour(tokens_per_minute=600), now=0)
    assert account.admit(10_000, 1, now=0) is None
    refusal = account.admit(10, 1, now=0)
    assert refusal is not None
    assert refusal.message == "Rate limit reached for tokens."
    assert refusal.retry_after_seconds == pytest.approx(1)


def test_rate_limit_headers_tell_what_is_left_and_minus_one_for_no_limit() -> None:
    account = Account(Behaviour(requests_per_minute=60), now=0)
    account.admit(1, 1, now=0)
    assert dict(account.headers(now=0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "-1",
        "x-ratelimit-remaining-tokens": "-1",
        "x-ratelimit-reset-tokens": "0s",
    }
    assert Account(Behaviour(), now=0).headers(now=0) == ()


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (61.25, "1m1.25s")],
)
def test_durations_are_written_as_the_upstream_writes_them(seconds: float, written: str) -> None:
    assert duration(seconds) == written
