"""A batch from the file to the database: what was sent, what came back, and how often."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MakeSite, Site, digest, plain
from worker.jobs.shaping import as_stream
from worker.jobs.states import BatchState, State
from worker.jobs.views import Job

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPhf"
    "DwAChAGAZ4HQBgAAAABJRU5ErkJggg=="
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_order",
            "parameters": {
                "type": "object",
                "properties": {"order": {"type": "integer"}, "note": {"type": "string"}},
                "required": ["order", "note"],
            },
        },
    }
]
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "town",
        "schema": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True, "stream_options": {"include_usage": True}},
    "thinking": {"model": "gpt-5.1-thinking"},
    "thinking-stream": {
        "model": "gpt-5.1-thinking",
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "tools": {"tools": TOOLS},
    "tools-stream": {"tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}},
    "structured": {"response_format": SCHEMA},
    "short": {"max_tokens": 3},
}
EACH = 30


def _requests() -> list[str]:
    texts = [
        plain(f"{kind} {number}: wie heißt die Straße? 答え 🙂", **fields)
        for number in range(EACH)
        for kind, fields in KINDS.items()
    ]
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]
    images = [
        json.dumps(
            {"model": "gpt-5.1", "seed": n, "messages": [{"role": "user", "content": parts}]}
        )
        for n in range(EACH)
    ]
    # Odd spelling that any rewriting would lose.
    odd = [
        f'{{ "messages":[{{"content":"odd \\u00e9 {n}","role":"user"}}] ,"temperature":1.0,'
        f' "model" : "gpt-5.1", "seed":{n}, "user":"\\/x" }}'
        for n in range(EACH)
    ]
    return texts + images + odd


class Ran:
    """A mixed batch that was run once, for many tests to look at."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.bodies = _requests()
        self.batch = site.finished(site.submit(self.bodies, "mixed.jsonl"))
        self.calls = site.simulator.calls()
        self.jobs = list(site.client.results(self.batch.id))

    def job(self, body: str) -> Job:
        return self.jobs[self.bodies.index(body)]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def ran(request: pytest.FixtureRequest, make_site: MakeSite) -> Iterator[Ran]:
    site = make_site(request.param, latency_seconds=0.01)
    site.start_worker(max_in_flight=32)
    yield Ran(site)
    site.close()


def test_every_request_of_a_mixed_batch_is_answered(ran: Ran) -> None:
    assert ran.batch.state is BatchState.COMPLETED
    assert (ran.batch.total, ran.batch.succeeded) == (len(ran.bodies), len(ran.bodies))
    assert {job.state for job in ran.jobs} == {State.SUCCEEDED}


def test_each_body_is_sent_once_and_byte_for_byte(ran: Ran) -> None:
    sent = Counter(call.body_sha256 for call in ran.calls)
    assert sent == Counter(digest(_sent(body)) for body in ran.bodies)


def _sent(body: str) -> str:
    """A body as it is to go out: what thinks long is called with a stream."""
    request = json.loads(body)
    plainly = request["model"] == "gpt-5.1-thinking" and "stream" not in request
    return as_stream(body) if plainly else body


def test_results_come_in_the_order_of_the_input(ran: Ran) -> None:
    assert [job.line for job in ran.jobs] == list(range(1, len(ran.bodies) + 1))


@pytest.mark.parametrize("kind", [*KINDS, "image"])
def test_what_is_stored_is_what_the_api_said(ran: Ran, kind: str) -> None:
    body = ran.bodies[list(KINDS).index(kind)] if kind in KINDS else ran.bodies[EACH * len(KINDS)]
    job = ran.job(body)
    said = _ask_again(ran.site, body)
    message = said["choices"][0]["message"]
    assert job.content == message["content"]
    assert job.reasoning_content == message.get("reasoning_content")
    assert job.finish_reason == said["choices"][0]["finish_reason"]
    assert [(c.name, c.arguments) for c in job.tool_calls] == [
        (c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()
    ]
    assert _usage(job) == _told(said["usage"])


def test_thinking_is_kept_apart_from_the_answer(ran: Ran) -> None:
    jobs = [job for job in ran.jobs if job.model == "gpt-5.1-thinking"]
    assert all(job.reasoning_content and job.content for job in jobs)
    assert all((job.reasoning_tokens or 0) > 0 for job in jobs)


def test_each_tool_call_is_a_row_with_its_place_and_validity(ran: Ran) -> None:
    with_tools = [
        job for job, body in zip(ran.jobs, ran.bodies, strict=True) if '"find_order"' in body
    ]
    assert len(with_tools) == 2 * EACH
    for job in with_tools:
        assert [call.index for call in job.tool_calls] == list(range(len(job.tool_calls)))
        assert all(call.call_id and call.arguments_valid for call in job.tool_calls)
        assert json.loads(job.tool_calls[0].arguments).keys() == {"order", "note"}


def test_the_raw_answer_is_kept_and_says_the_same(ran: Ran) -> None:
    for job in ran.jobs:
        raw = json.loads(job.response or "")
        assert raw["object"] == "chat.completion"
        assert raw["choices"][0]["message"]["content"] == job.content


def test_the_batchs_token_counts_are_the_sums_of_its_jobs(ran: Ran) -> None:
    batch = ran.batch
    names = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    sums = {name: sum(getattr(job, name) or 0 for job in ran.jobs) for name in names}
    assert {name: getattr(batch, name) for name in names} == sums
    assert sums["prompt_tokens"] > 0


def test_every_call_is_in_the_ledger_with_its_endpoint_time_and_request_id(ran: Ran) -> None:
    for job in ran.jobs[:: len(ran.jobs) // 10]:
        (call,) = ran.site.client.attempts(job.id)
        assert (call.state, call.status) == ("answered", 200)
        assert call.endpoint == ran.site.simulator.url
        assert call.seconds is not None
        assert call.seconds >= 0.01
        assert call.request_id == job.request_id
        assert job.request_id


def test_the_key_and_the_texts_are_in_no_log(ran: Ran) -> None:
    log = ran.site.logs()
    assert "worker_ready" in log
    for secret in (ran.site.base["api_key"], "wie heißt die Stra", ran.jobs[0].content or "?"):
        assert secret not in log


def test_the_same_key_submits_a_batch_only_once(ran: Ran) -> None:
    first = ran.site.client.submit_many([plain("only once")], key="the-key")
    again = ran.site.client.submit_many([plain("only once")], key="the-key")
    assert again.id == first.id
    ran.site.finished(first)
    assert ran.site.calls_of(plain("only once")) == 1


def test_a_batch_file_with_ids_comes_back_with_them(ran: Ran, tmp_path: Path) -> None:
    file = tmp_path / "named.jsonl"
    lines = [
        {"custom_id": f"id {n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate(json.loads(plain(f"named {n}")) for n in range(5))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    submitted = ran.site.client.submit_file(file)
    ran.site.client.wait_batch(submitted.batch_id, 30)
    found = [job.custom_id for job in ran.site.client.results(submitted.batch_id)]
    assert found == [f"id {n}" for n in range(5)]


def _ask_again(site: Site, body: str) -> dict[str, Any]:
    """What the simulator says to a body, not streamed: it says the same to the same messages."""
    stream = ', "stream": true, "stream_options": {"include_usage": true}'
    answer = httpx.post(
        f"{site.simulator.url}/v1/chat/completions",
        content=body.replace(stream, "").encode(),
        headers={"authorization": "Bearer key"},
        trust_env=False,
    )
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def _usage(job: Job) -> tuple[int | None, ...]:
    return (
        job.prompt_tokens,
        job.cached_tokens,
        job.completion_tokens,
        job.reasoning_tokens,
        job.total_tokens,
    )


def _told(usage: dict[str, Any]) -> tuple[int | None, ...]:
    return (
        usage["prompt_tokens"],
        usage.get("prompt_tokens_details", {}).get("cached_tokens", 0),
        usage["completion_tokens"],
        usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0),
        usage["total_tokens"],
    )
