"""Single jobs, and the doorbell: what its messages do, and what their loss does not."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, flush, plain, scripted
from tests.integration.servers import Broker
from worker.client import Client
from worker.jobs.states import State
from worker.queue.app import create_app
from worker.queue.bell import Bell


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Iterator[Site]:
    made = make_site(latency_seconds=0.02)
    made.start_worker(max_in_flight=8)
    yield made
    made.close()


@pytest.fixture
def quiet(site: Site) -> Iterator[Client]:
    """A client whose messages are all lost: it has no broker."""
    settings = site.settings().model_copy(update={"broker_url": None})
    with Client(settings) as client:
        yield client


def test_a_single_job_is_answered(site: Site) -> None:
    body = plain("a single question")
    job = site.client.wait(site.client.submit(body).id, 10)
    assert (job.state, job.batch_id, job.attempts) == (State.SUCCEEDED, None, 1)
    assert job.content
    assert site.calls_of(body) == 1


def test_a_single_job_is_tried_again_like_any_other(site: Site) -> None:
    job = site.client.wait(site.client.submit(scripted("500,ok", "single")).id, 10)
    assert (job.state, job.attempts) == (State.SUCCEEDED, 2)


def test_a_single_job_whose_message_was_lost_is_run_by_a_shift(site: Site, quiet: Client) -> None:
    job = site.client.wait(quiet.submit(plain("nobody rang")).id, 15)
    assert (job.state, job.attempts) == (State.SUCCEEDED, 1)
    assert job.started_at is not None
    # Its own message would have had five seconds; a sweep comes every second.
    assert (job.started_at - job.created_at).total_seconds() < 10


def test_a_batch_nobody_rang_for_is_found_by_the_sweep(site: Site, quiet: Client) -> None:
    batch = quiet.submit_many([plain(f"silent {n}") for n in range(10)])
    assert site.finished(batch, 10).succeeded == 10


def test_work_handed_in_while_the_broker_hung_is_rung_for_by_the_sweep(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the call and says nothing
        port = silent.getsockname()[1]
        with Client(site.settings(broker_url=f"redis://127.0.0.1:{port}/0")) as client:
            batch = client.submit_many([plain(f"hung {n}") for n in range(10)])
            job = client.submit(plain("hung single"))
    assert site.finished(batch, 30).succeeded == 10
    assert site.client.wait(job.id, 30).state is State.SUCCEEDED


def test_messages_that_come_twice_do_nothing(site: Site) -> None:
    bell = Bell(create_app(site.settings()))
    bodies = [plain(f"rung {n}") for n in range(60)]
    job = site.client.submit(scripted("latency=0.3", "rung single"))
    batch = site.submit(bodies)
    for _ in range(10):
        assert bell.ring_shift()
        assert bell.ring_job(job.id)
    site.finished(batch)
    site.client.wait(job.id, 10)
    assert [site.calls_of(body) for body in bodies] == [1] * len(bodies)
    assert site.calls_of(scripted("latency=0.3", "rung single")) == 1


def test_a_broker_that_loses_everything_in_mid_batch_loses_no_job(site: Site) -> None:
    bodies = [plain(f"flushed {n}") for n in range(300)]
    batch = site.submit(bodies)
    wait_until(lambda: site.client.batch(batch.id).done >= 30, "the batch is on its way")
    flush(site.base["broker_url"])
    assert site.client.batch(batch.id).done < 300
    later = site.submit([plain("after the flush")])
    assert site.finished(batch).succeeded == 300
    assert site.finished(later).succeeded == 1
    assert [site.calls_of(body) for body in bodies] == [1] * len(bodies)


def test_what_is_submitted_while_the_broker_is_down_runs_when_it_is_back(
    make_site: MakeSite, broker: Broker
) -> None:
    site = make_site(broker_url=broker.url)
    site.start_worker()
    broker.kill()
    began = time.monotonic()
    batch = site.submit([plain(f"down {n}") for n in range(20)])
    job = site.client.submit(plain("down single"))
    assert time.monotonic() - began < 3  # nobody waits for the broker
    broker.start()
    assert site.finished(batch, 30).succeeded == 20
    assert site.client.wait(job.id, 30).state is State.SUCCEEDED
    after = site.client.submit(plain("up again"))
    assert site.client.wait(after.id, 30).state is State.SUCCEEDED
    site.close()
