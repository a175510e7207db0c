"""Which endpoint a call goes to, and where it goes when that one cannot answer."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, digest, plain
from worker.jobs.options import JobOptions
from worker.jobs.states import State
from worker.simulator import Behaviour, SimulatorThread


def _image(text: str, url: str = "https://example.com/a.png", *, stream: bool = False) -> str:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": "And now?"}]
    return json.dumps({"model": "gpt-5.1", "messages": messages, "stream": stream})


def _seen(simulator: SimulatorThread) -> list[str]:
    """What a simulator was asked, as its ledger has it."""
    return sorted(call.body_sha256 for call in simulator.calls())


@pytest.fixture(scope="module")
def other() -> Iterator[SimulatorThread]:
    with SimulatorThread() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def failing() -> Iterator[SimulatorThread]:
    with SimulatorThread(Behaviour(fail_rate=1.0, faults=("500",))) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    """An endpoint that refuses connections: bound, so that nobody else takes it, and silent."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(scope="module")
def two_kinds(make_site: MakeSite, other: SimulatorThread) -> Iterator[Site]:
    site = make_site()
    urls = (site.simulator.url, other.url)
    site.start_worker(text_endpoints=urls, multimodal_endpoints=urls[::-1])
    yield site
    site.close()


def test_text_goes_to_the_text_endpoint_and_images_to_the_multimodal_one(
    two_kinds: Site, other: SimulatorThread
) -> None:
    texts = [plain(f"text {n}", stream=n % 2 > 0) for n in range(20)]
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="
    images = [_image(f"image {n}", stream=n % 2 > 0) for n in range(8)]
    images += [_image(f"pixel {n}", pixel) for n in range(2)]
    jobs = two_kinds.run([*texts, *images])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert _seen(two_kinds.simulator) == sorted(map(digest, texts))
    assert _seen(other) == sorted(map(digest, images))
    used = [two_kinds.client.attempts(job.id)[0].endpoint for job in jobs]
    assert used == [two_kinds.simulator.url] * 20 + [other.url] * 10


def test_a_job_goes_on_to_the_next_endpoint_when_one_refuses_or_fails(
    make_site: MakeSite, nobody: str, failing: SimulatorThread
) -> None:
    site = make_site()
    good = site.simulator.url
    site.start_worker(
        text_endpoints=(nobody, failing.url, good), multimodal_endpoints=(failing.url, good)
    )
    *texts, image = site.run([*(plain(f"text {n}") for n in range(10)), _image("image")])
    assert {job.state for job in (*texts, image)} == {State.SUCCEEDED}
    for job in texts:
        calls = site.client.attempts(job.id)
        # Once an endpoint is known not to be well, it is passed over.
        assert {call.endpoint for call in calls} <= {nobody, failing.url, good}
        assert (calls[-1].endpoint, calls[-1].status) == (good, 200)
        assert not any(call.maybe_billed for call in calls if call.endpoint == nobody)
    assert any(site.client.attempts(job.id)[0].endpoint == nobody for job in texts)
    assert {call.endpoint for call in site.client.attempts(image.id)} <= {failing.url, good}
    assert site.simulator.summary().calls == 11
    site.close()


def test_an_endpoint_that_was_away_is_used_again_and_no_job_fails(make_site: MakeSite) -> None:
    site = make_site(latency_seconds=0.05)
    with SimulatorThread(Behaviour(latency_seconds=0.05)) as second:
        urls = (site.simulator.url, second.url)
        site.start_workers("one", "two", text_endpoints=urls, max_in_flight=10)
        batch = site.submit([plain(f"text {n}") for n in range(8_000)])
        wait_until(lambda: site.simulator.summary().calls > 200, "the first is used")
        site.simulator.set(fail_rate=1.0, faults=("503",), retry_after_seconds=0.5)
        wait_until(lambda: second.summary().calls > 400, "the second stands in")
        broken = site.simulator.summary().calls
        wait_until(lambda: second.summary().calls > 1_000, "the second stands in still")
        assert site.simulator.summary().calls - broken < 20
        site.simulator.set(fail_rate=0.0)
        back = site.simulator.summary().calls
        wait_until(lambda: site.simulator.summary().calls > back + 100, "the first is used again")
        assert site.client.batch(batch.id).failed == 0
        site.client.cancel(batch.id)
    site.close()


def test_a_job_can_name_endpoints_of_its_own_and_no_key_is_sent_to_foreign_ones(
    make_site: MakeSite,
) -> None:
    site = make_site()
    with SimulatorThread() as second, SimulatorThread() as foreign:
        site.start_worker(text_endpoints=(site.simulator.url, second.url))
        mine = site.client.submit(plain("mine"), options=JobOptions((second.url,)))
        theirs = site.client.submit(plain("theirs"), options=JobOptions((foreign.url,)))
        assert site.client.wait(mine.id, 60).state is State.SUCCEEDED
        assert (second.summary().calls, site.simulator.summary().calls) == (1, 0)
        refused = site.client.wait(theirs.id, 60)
        assert (refused.state, refused.error_code) == (State.FAILED, "endpoint_not_configured")
        assert foreign.summary().calls == 0
    site.close()
