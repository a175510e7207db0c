"""Which endpoint a call goes to, and where it goes when that one cannot answer."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.integration.conftest import MakeSite, Site, plain
from worker.jobs.states import State
from worker.simulator import Behaviour, SimulatorThread


def _image(text: str) -> str:
    url = {"url": "https://example.com/a.png"}
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
    return json.dumps({"model": "gpt-5.1", "messages": [{"role": "user", "content": parts}]})


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
    texts = [plain(f"text {n}") for n in range(20)]
    images = [_image(f"image {n}") for n in range(10)]
    jobs = two_kinds.run([*texts, *images])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert (two_kinds.simulator.summary().calls, other.summary().calls) == (20, 10)
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
        assert [call.endpoint for call in calls] == [nobody, failing.url, good]
        assert [call.status for call in calls] == [None, 500, 200]
        assert not calls[0].maybe_billed
    calls = site.client.attempts(image.id)
    assert [call.endpoint for call in calls] == [failing.url, failing.url, good]
    assert site.simulator.summary().calls == 11
    site.close()
