"""Limits of the API, kept by workers that share what they learn of them; nothing is tuned."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, plain
from worker.jobs.states import State
from worker.simulator.ledger import Call


def _texts(count: int) -> list[str]:
    return [plain(f"question {n}") for n in range(count)]


def _refused(calls: Sequence[Call], after_seconds: float = 0.0) -> int:
    """How many calls were turned away for a limit, from so long after the first."""
    begin = min(call.arrived_seconds for call in calls) + after_seconds
    return sum(call.status == 429 for call in calls if call.arrived_seconds >= begin)


def test_a_limit_that_headers_tell_of_is_used_up_and_not_overstepped(make_site: MakeSite) -> None:
    site = make_site("postgres", requests_per_minute=1_200, latency_seconds=0.2)
    site.start_workers("one", "two", "three", max_in_flight=50)
    batch = site.submit(_texts(400))
    wait_until(lambda: site.simulator.summary().calls > 20, "calls are made", 30)
    began, before = time.monotonic(), site.simulator.summary().calls
    wait_until(lambda: site.simulator.summary().calls >= 380, "most calls are made", 60)
    rate = (site.simulator.summary().calls - before) / (time.monotonic() - began)
    done = site.finished(batch)
    calls = site.simulator.calls()
    site.close()
    assert done.succeeded == 400
    assert 0.85 * 20 <= rate <= 1.1 * 20
    assert _refused(calls) <= 4
    assert {job.attempts for job in site.client.results(batch.id)} == {1}


@pytest.mark.parametrize(
    "behaviour",
    [{"max_in_flight": 6}, {"tokens_per_minute": 60_000}],
    ids=["in flight", "tokens"],
)
def test_other_limits_are_learnt_too_and_fail_nothing(
    make_site: MakeSite, behaviour: dict[str, Any]
) -> None:
    site = make_site(latency_seconds=0.2, retry_after_seconds=0.1, **behaviour)
    site.start_workers("one", "two", max_in_flight=40)
    jobs = site.run(_texts(250), 90)
    calls = site.simulator.calls()
    site.close()
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert {job.attempts for job in jobs} == {1}
    assert _refused(calls, 5.0) <= 0.1 * len(calls)


def test_the_settings_cap_what_is_used(make_site: MakeSite) -> None:
    site = make_site(latency_seconds=0.05)
    site.start_worker(requests_per_minute=600)
    began = time.monotonic()
    site.run(_texts(60))
    took = time.monotonic() - began
    site.close()
    assert took >= 0.9 * 5.0


def test_when_the_api_says_wait_every_worker_waits(make_site: MakeSite) -> None:
    site: Site = make_site(latency_seconds=0.05, requests_per_minute=6_000)
    site.start_workers("one", "two", max_in_flight=20)
    # So many that they are not done before the refusal; so few that what it teaches, a limit that
    # is felt for ten times the wait, does not decide how long this takes.
    batch = site.submit(_texts(500))
    wait_until(lambda: site.simulator.summary().calls >= 100, "calls are made", 30)
    site.simulator.set(max_in_flight=1, retry_after_seconds=3.0)

    def refused() -> int:
        return site.simulator.summary().outcomes.get("too_many_in_flight", 0)

    wait_until(lambda: refused() >= 10, "so many are refused that it is a limit")
    site.simulator.set(max_in_flight=0)
    time.sleep(0.5)
    before = site.simulator.summary().calls
    time.sleep(1.5)
    assert site.simulator.summary().calls == before
    done = site.finished(batch)
    site.close()
    assert (done.succeeded, done.failed) == (500, 0)
