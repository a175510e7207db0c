"""A key that is refused, or has no credit left: everything that uses it waits, unharmed."""

from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import KEY, MakeSite, Site, plain
from worker.jobs.states import State
from worker.jobs.views import Batch

JOBS = 3_000


@pytest.fixture
def broke(make_site: MakeSite) -> Iterator[tuple[Site, Batch]]:
    """A site without credit, two workers, many jobs, and the moment when that was noticed."""
    site = make_site(credits=0, latency_seconds=0.01)
    batch = site.submit([plain(f"question {n}") for n in range(JOBS)])
    site.start_workers("one", "two")
    wait_until(lambda: bool(site.client.pauses()), "the key is paused")
    yield site, batch
    site.close()


def test_an_empty_balance_costs_less_than_a_call_per_worker_and_fails_no_job(
    broke: tuple[Site, Batch],
) -> None:
    site, batch = broke
    (pause,) = site.client.pauses()
    assert (pause.code, pause.endpoint) == ("insufficient_quota", site.simulator.url)
    assert pause.message
    assert KEY not in str(pause)
    wait_until(lambda: site.client.count(batch.id).get(State.WAITING, 0) > 0, "one waits")
    assert site.simulator.summary().calls <= 2
    counts = site.states(batch)
    assert counts.get(State.FAILED, 0) == 0
    assert counts[State.QUEUED] + counts[State.WAITING] == JOBS
    (waiting,) = site.client.jobs(batch_id=batch.id, state=State.WAITING)
    assert (waiting.attempts, waiting.error_code) == (0, "insufficient_quota")


def test_resume_goes_on_at_once_when_there_is_credit_again(broke: tuple[Site, Batch]) -> None:
    site, batch = broke
    site.simulator.set(credits=10 * JOBS)
    assert site.client.resume() == 1
    done = site.finished(batch)
    assert (done.succeeded, done.failed) == (JOBS, 0)
    assert site.client.pauses() == []


def test_resumed_without_credit_the_key_is_paused_again_after_a_call(
    broke: tuple[Site, Batch],
) -> None:
    site, batch = broke
    before = site.simulator.summary().calls
    assert site.client.resume() == 1
    wait_until(lambda: bool(site.client.pauses()), "the key is paused again")
    assert site.simulator.summary().calls <= before + 4
    assert site.states(batch).get(State.FAILED, 0) == 0


def test_a_probe_finds_out_by_itself_that_the_key_is_good_again(broke: tuple[Site, Batch]) -> None:
    site, batch = broke
    site.simulator.set(credits=10 * JOBS)
    done = site.finished(batch, 60)
    assert (done.succeeded, done.failed) == (JOBS, 0)
    assert site.client.pauses() == []


def test_another_endpoint_with_a_key_of_its_own_takes_over(
    broke: tuple[Site, Batch], make_site: MakeSite
) -> None:
    site, _ = broke
    rich = make_site(latency_seconds=0.01, keys=("sk-other",))
    two = site.settings(
        text_endpoints=(site.simulator.url, rich.simulator.url),
        endpoint_keys=f"{rich.simulator.url}=sk-other",
        home=rich.folder / "home",
        database_url=rich.settings().database_url,
        broker_url=rich.settings().broker_url,
    )
    rich.base |= {name: getattr(two, name) for name in ("text_endpoints", "endpoint_keys")}
    rich.start_worker()
    jobs = rich.run([plain(f"other question {n}") for n in range(20)])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert site.client.pauses()[0].endpoint == site.simulator.url
    rich.close()
