"""A fake of the API that was not made here judges what our workers do with its faults."""

from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from llmock.pytest_plugin import LLMock
from llmock.testing import LLMockServer

from tests.integration.conftest import MakeSite, Site, plain
from worker.jobs.options import JobOptions
from worker.jobs.states import State

PACE_MS: Final = 40
"""Between chunks: of a stream sent whole at once nobody can be seen to stop reading."""


@pytest.fixture(scope="module")
def site(make_site: MakeSite, llmock_server: LLMockServer) -> Iterator[Site]:
    made = make_site()
    urls = (llmock_server.url,)
    made.start_worker(text_endpoints=urls, multimodal_endpoints=urls, idle_timeout_seconds=2.0)
    yield made
    made.close()


def assert_clean(llmock: LLMock) -> None:
    """Check that it found no fault with us, and nothing to warn of but what a circuit explains.

    Where a circuit rests for longer than the job's own wait, two waits can be alike. That our waits
    grow is tested where they are made; one that is left out is still found here.
    """
    verdict = llmock.verdict()
    left = [one for one in verdict.findings if "at a constant interval" not in one.title]
    assert not left, verdict.render()


def test_a_plain_batch_is_answered(site: Site, llmock: LLMock) -> None:
    jobs = site.run([plain(f"llmock {n}", stream=bool(n % 2)) for n in range(40)])
    assert {(job.state, job.attempts) for job in jobs} == {(State.SUCCEEDED, 1)}
    assert all(job.content and job.finish_reason == "stop" for job in jobs)
    assert len(llmock.requests) == 40
    assert_clean(llmock)


def test_a_tool_call_is_kept(site: Site, llmock: LLMock) -> None:
    llmock.call_tool("find", {"what": "it"}, times=2)
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    jobs = site.run([plain(f"tool {n}", tools=[tool], stream=bool(n)) for n in range(2)])
    assert [[call.name for call in job.tool_calls] for job in jobs] == [["find"], ["find"]]
    assert all("it" in job.tool_calls[0].arguments for job in jobs)


SCHEMA: Final[dict[str, Any]] = {
    "type": "json_schema",
    "json_schema": {
        "name": "colour",
        "schema": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
}


def test_an_answer_of_the_wrong_form_is_asked_for_again_with_what_was_wrong(
    site: Site, llmock: LLMock
) -> None:
    llmock.reply('{"nom": "bleu"}').reply("It is blue.").reply('{"name": "blue"}')
    body = plain("a colour", response_format=SCHEMA)
    job = site.client.submit(body, options=JobOptions(reasks=2))
    done = site.client.wait(job.id, 30)
    assert (done.state, done.content, done.attempts) == (State.SUCCEEDED, '{"name": "blue"}', 1)
    first, second, third = (record.body["messages"] for record in llmock.requests)
    assert second[: len(first)] == third[: len(first)] == first
    assert [one["role"] for one in second[len(first) :]] == ["assistant", "user"]
    assert second[len(first)]["content"] == '{"nom": "bleu"}'
    assert "'name' is a required property" in second[-1]["content"]
    assert third[len(first)]["content"] == "It is blue."
    codes = [call.error_code for call in site.client.attempts(job.id)]
    assert codes == ["schema_mismatch", "content_not_json", None]


def test_asking_again_ends(site: Site, llmock: LLMock) -> None:
    llmock.reply('{"nom": "bleu"}', times=5)
    body = plain("a colour, in vain", response_format=SCHEMA)
    job = site.client.submit(body, options=JobOptions(reasks=2))
    done = site.client.wait(job.id, 30)
    assert (done.state, done.error_code) == (State.FAILED, "schema_mismatch")
    assert done.content == '{"nom": "bleu"}'
    assert len(llmock.requests) == 3


def test_refusals_are_waited_out_as_asked(site: Site, llmock: LLMock) -> None:
    llmock.rate_limit(times=3, retry_after=0.5).fail(503, retry_after=0.3, times=2).fail(500)
    jobs = site.run([plain(f"refused {n}") for n in range(12)])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert len(llmock.requests) == 12 + 6
    # the waits that were asked for are free, the error without one is not
    assert sum(job.attempts for job in jobs) == 12 + 1
    assert_clean(llmock)


def test_broken_streams_are_noticed_and_asked_for_again(site: Site, llmock: LLMock) -> None:
    llmock.pace(PACE_MS).truncate(times=2).disconnect(times=2).corrupt(times=2).stall(seconds=20)
    jobs = site.run([plain(f"broken {n}", stream=True) for n in range(12)])
    assert {(job.state, job.finish_reason) for job in jobs} == {(State.SUCCEEDED, "stop")}
    assert len(llmock.requests) == 12 + 7
    assert_clean(llmock)


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_what_cannot_succeed_is_asked_once(site: Site, llmock: LLMock, status: int) -> None:
    llmock.fail(status, times=3).context_overflow()
    jobs = site.run([plain(f"hopeless {status} {n}") for n in range(4)])
    assert {job.state for job in jobs} == {State.FAILED}
    assert all(job.error_code and job.error_message for job in jobs)
    assert len(llmock.requests) == 4
    assert_clean(llmock)


def test_a_broken_tool_call_is_kept_as_it_came(site: Site, llmock: LLMock) -> None:
    llmock.break_tool_call("malformed_arguments", times=2)
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    jobs = site.run([plain(f"broken tool {n}", tools=[tool], stream=bool(n)) for n in range(2)])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    calls = [call for job in jobs for call in job.tool_calls]
    assert [call.arguments_valid for call in calls] == [False, False]
    assert all(call.arguments for call in calls)
    assert_clean(llmock)


def test_a_quota_of_requests_is_waited_out(site: Site, llmock: LLMock) -> None:
    llmock.limits(rpm=300)
    jobs = site.run([plain(f"quota {n}") for n in range(62)])
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    # What the headers tell is heeded, so hardly a call is refused.
    assert sum(record.status == 429 for record in llmock.requests) <= 2
    assert_clean(llmock)


SCENARIO: Final[list[dict[str, Any]]] = [
    *({"type": "fail", "status": status} for status in (408, 409, 500, 502, 504, 529)),
    {"type": "fail", "status": 429, "retry_after": 0.4},
    {"type": "fail", "status": 503, "retry_after": 0.3, "message": "overloaded"},
    *(
        {"type": "stream_fault", "kind": kind, "after_chunks": chunks}
        for kind in ("disconnect", "truncate", "malformed")
        for chunks in (0, 1, 4)
    ),
    {"type": "stream_fault", "kind": "stall", "after_chunks": 1, "stall_seconds": 20},
    {"type": "delay", "seconds": 0.3, "times": 3},
    {"type": "slow_first_token", "seconds": 0.5, "times": 3},
    {
        "type": "reply",
        "text": "Cut off by the mo",
        "finish_reason": "length",
        "match": {"stream": False},
    },
]


def test_a_scenario_of_every_fault_ends_with_a_clean_verdict(site: Site, llmock: LLMock) -> None:
    llmock.pace(PACE_MS)
    with httpx.Client(base_url=f"{llmock.url}/_llmock", trust_env=False) as control:
        control.post("/scenario", json={"behaviors": SCENARIO}).raise_for_status()
        jobs = site.run([plain(f"scenario {n}", stream=n % 3 > 0) for n in range(45)])
        assert control.get("/scenario").json() == {"pending": []}
        verdict = control.get("/verdict").json()
    assert verdict["passed"]
    assert_clean(llmock)
    assert verdict["calls"] == len(jobs)
    assert verdict["attempts"] >= len(jobs) + 18  # eight refusals and ten broken streams
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert all(job.content for job in jobs)
    assert sorted({job.finish_reason or "" for job in jobs}) == ["length", "stop"]
    attempts = [one for job in jobs for one in site.client.attempts(job.id)]
    # Each call that arrived is in the ledger; one whose connection broke on the way is there too.
    unseen = len(attempts) - verdict["attempts"]
    assert 0 <= unseen <= sum(one.status is None and one.error_code is not None for one in attempts)
    billed = {one.error_code for one in attempts if one.maybe_billed}
    assert {"stream_cut", "stream_unreadable", "read_timeout", "gateway_timeout"} <= billed
