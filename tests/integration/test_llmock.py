"""A fake of the API that was not made here judges what our workers do with its faults."""

from collections.abc import Iterator

import pytest
from llmock.pytest_plugin import LLMock
from llmock.testing import LLMockServer

from tests.integration.conftest import MakeSite, Site, plain
from worker.jobs.states import State


@pytest.fixture(scope="module")
def site(make_site: MakeSite, llmock_server: LLMockServer) -> Iterator[Site]:
    made = make_site()
    urls = (llmock_server.url,)
    made.start_worker(text_endpoints=urls, multimodal_endpoints=urls, idle_timeout_seconds=2.0)
    yield made
    made.close()


def test_a_plain_batch_is_answered(site: Site, llmock: LLMock) -> None:
    jobs = site.run([plain(f"llmock {n}", stream=bool(n % 2)) for n in range(40)])
    assert {(job.state, job.attempts) for job in jobs} == {(State.SUCCEEDED, 1)}
    assert all(job.content and job.finish_reason == "stop" for job in jobs)
    assert len(llmock.requests) == 40
    llmock.assert_resilient(strict=True)


def test_a_tool_call_is_kept(site: Site, llmock: LLMock) -> None:
    llmock.call_tool("find", {"what": "it"}, times=2)
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    jobs = site.run([plain(f"tool {n}", tools=[tool], stream=bool(n)) for n in range(2)])
    assert [[call.name for call in job.tool_calls] for job in jobs] == [["find"], ["find"]]
    assert all("it" in job.tool_calls[0].arguments for job in jobs)


def test_refusals_are_waited_out_as_asked(site: Site, llmock: LLMock) -> None:
    llmock.rate_limit(times=3, retry_after=0.5).fail(503, retry_after=0.3, times=2).fail(500)
    jobs = site.run([plain(f"refused {n}") for n in range(12)])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert sum(job.attempts for job in jobs) == 12 + 6
    llmock.assert_resilient(strict=True)


def test_broken_streams_are_noticed_and_asked_for_again(site: Site, llmock: LLMock) -> None:
    llmock.truncate(times=2).disconnect(times=2).corrupt(times=2).stall(seconds=20)
    jobs = site.run([plain(f"broken {n}", stream=True) for n in range(12)])
    assert {(job.state, job.finish_reason) for job in jobs} == {(State.SUCCEEDED, "stop")}
    assert sum(job.attempts for job in jobs) == 12 + 7
    llmock.assert_resilient(strict=True)


def test_what_cannot_succeed_is_asked_once(site: Site, llmock: LLMock) -> None:
    llmock.fail(400, times=2).context_overflow().fail(404)
    jobs = site.run([plain(f"hopeless {n}") for n in range(4)])
    assert {(job.state, job.attempts) for job in jobs} == {(State.FAILED, 1)}
    llmock.assert_resilient(strict=True)
