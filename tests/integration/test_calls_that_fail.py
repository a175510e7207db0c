"""What becomes of a job whose calls go wrong. One batch runs them all, each test looks at one."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MakeSite, Site, digest, plain, scripted
from worker.jobs.shaping import as_stream
from worker.jobs.states import State
from worker.jobs.views import Attempt, Job

MAX_ATTEMPTS = 4

# What the server itself puts off costs no attempt.
PUT_OFF = ("429+retry_after=0.4,ok", "503+retry_after=0.4,ok")

# Those that get better: the script, and the error code of the first call (None: not looked at).
MENDED = {
    "429+retry_after=0.4,ok": 429,
    "503+retry_after=0.4,ok": 503,
    "500,500,ok": 500,
    "500_empty,ok": 500,
    "502,ok": 502,
    "504,ok": 504,
    "524,ok": 524,
    "408,ok": 408,
    "reset,ok": None,
    "close,ok": None,
    "hang,ok": None,
    "cut_body,ok": None,
    "bad_json,ok": None,
    "html_200,ok": None,
    "empty_200,ok": None,
    "error_200,ok": None,
}
MENDED_STREAMS = (
    "cut_stream,ok",
    "cut_stream_abrupt,ok",
    "cut_stream_done,ok",
    "stream_error_event,ok",
    "bad_json,ok",
    "html_200,ok",
)
PERMANENT = {
    "400": 400,
    "400_context_length": 400,
    "400_unsupported_parameter": 400,
    "403": 403,
    "404": 404,
    "413": 413,
    "422": 422,
    "500_no_retry": 500,
}
MAYBE_BILLED = ("reset,ok", "close,ok", "hang,ok", "cut_body,ok", "html_200,ok", "504,ok")
NOT_BILLED = ("429+retry_after=0.4,ok", "500,500,ok")


def _body(script: str, *, stream: bool = False) -> str:
    return scripted(script, f"stream {script}", stream=True) if stream else scripted(script)


@dataclass
class Ran:
    site: Site
    jobs: dict[str, Job]

    def job(self, script: str, *, stream: bool = False) -> Job:
        return self.jobs[_body(script, stream=stream)]

    def calls(self, script: str, *, stream: bool = False) -> list[Any]:
        wanted = digest(_body(script, stream=stream))
        return [call for call in self.site.simulator.calls() if call.body_sha256 == wanted]

    def attempts(self, script: str, *, stream: bool = False) -> list[Attempt]:
        return self.site.client.attempts(self.job(script, stream=stream).id)


@pytest.fixture(scope="module")
def ran(make_site: MakeSite) -> Iterator[Ran]:
    site = make_site()
    site.start_worker(max_attempts=MAX_ATTEMPTS, idle_timeout_seconds=1.5, call_timeout_seconds=2.0)
    bodies = [_body(script) for script in (*MENDED, *PERMANENT, "500", "length", "content_filter")]
    bodies += [_body(script, stream=True) for script in MENDED_STREAMS]
    jobs = site.run(bodies)
    yield Ran(site, dict(zip(bodies, jobs, strict=True)))
    site.close()


@pytest.mark.parametrize("script", MENDED)
def test_a_call_that_fails_and_gets_better_is_made_again(ran: Ran, script: str) -> None:
    expected = script.count(",") + 1
    job = ran.job(script)
    burnt = 1 if script in PUT_OFF else expected
    assert (job.state, job.attempts, job.error_code) == (State.SUCCEEDED, burnt, None)
    assert job.content
    assert len(ran.calls(script)) == expected
    attempts = ran.attempts(script)
    assert [attempt.number for attempt in attempts] == list(range(1, expected + 1))
    assert attempts[0].error_code
    assert attempts[-1].error_code is None
    if MENDED[script] is not None:
        assert attempts[0].status == MENDED[script]


@pytest.mark.parametrize("script", MENDED_STREAMS)
def test_a_stream_that_is_not_whole_is_never_taken_for_an_answer(ran: Ran, script: str) -> None:
    job = ran.job(script, stream=True)
    assert (job.state, job.finish_reason) == (State.SUCCEEDED, "stop")
    assert len(ran.calls(script, stream=True)) == 2
    whole = json.loads(job.response or "")
    assert whole["choices"][0]["message"]["content"] == job.content
    assert ran.attempts(script, stream=True)[0].error_code


@pytest.mark.parametrize("script", PUT_OFF)
def test_the_wait_that_the_api_asks_for_is_kept(ran: Ran, script: str) -> None:
    first, second = ran.calls(script)
    assert second.arrived_seconds - first.arrived_seconds >= 0.4


@pytest.mark.parametrize("script", PERMANENT)
def test_a_permanent_error_costs_one_call(ran: Ran, script: str) -> None:
    job = ran.job(script)
    assert (job.state, job.attempts, job.status) == (State.FAILED, 1, PERMANENT[script])
    assert job.error_code
    assert job.error_message
    assert len(ran.calls(script)) == 1


def test_a_job_that_never_gets_better_fails_after_the_attempts_it_has(ran: Ran) -> None:
    job = ran.job("500")
    assert (job.state, job.attempts, job.status) == (State.FAILED, MAX_ATTEMPTS, 500)
    assert len(ran.calls("500")) == MAX_ATTEMPTS


def test_the_waits_between_the_calls_grow(ran: Ran) -> None:
    times = [call.arrived_seconds for call in ran.calls("500")]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, (0.25, 0.5, 1.0), strict=True))


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_short_by_the_model_is_an_answer(ran: Ran, reason: str) -> None:
    job = ran.job(reason)
    assert (job.state, job.finish_reason) == (State.SUCCEEDED, reason)
    assert len(ran.calls(reason)) == 1


@pytest.mark.parametrize("script", MAYBE_BILLED)
def test_a_call_that_may_have_run_is_shown_as_maybe_billed(ran: Ran, script: str) -> None:
    assert ran.attempts(script)[0].maybe_billed


@pytest.mark.parametrize("script", NOT_BILLED)
def test_a_call_that_was_refused_is_not_shown_as_billed(ran: Ran, script: str) -> None:
    assert not any(attempt.maybe_billed for attempt in ran.attempts(script))


def test_every_try_of_a_job_carries_the_same_idempotency_key(ran: Ran) -> None:
    keys = {call.idempotency_key for call in ran.calls("500,500,ok")}
    assert len(keys) == 1
    assert None not in keys


def test_the_batch_counts_what_failed(ran: Ran) -> None:
    (batch,) = [one for one in ran.site.client.batches() if one.total == len(ran.jobs)]
    assert batch.failed == len(PERMANENT) + 1
    assert batch.succeeded == batch.total - batch.failed


def test_failures_are_grouped_by_their_code(ran: Ran) -> None:
    (batch,) = [one for one in ran.site.client.batches() if one.total == len(ran.jobs)]
    groups = ran.site.client.failures(batch.id)
    assert sum(group.count for group in groups) == batch.failed
    assert all(group.message for group in groups)


def test_without_credit_a_job_waits_and_burns_no_attempt(ran: Ran) -> None:
    job = ran.site.client.submit(scripted("402", "no credit"))
    waiting = ran.site.wait_for(job.id, State.WAITING)
    assert waiting.attempts == 0
    assert waiting.due_at is not None
    assert len(ran.site.client.attempts(job.id)) == 1
    assert ran.site.client.cancel(job.id) == 1


def test_failed_jobs_can_be_run_again(ran: Ran) -> None:
    site = ran.site
    batch = site.submit([scripted("400,ok", "again"), scripted("ok", "good")])
    site.finished(batch)
    assert site.client.batch(batch.id).failed == 1
    assert site.client.retry(batch.id) == 1
    done = site.finished(batch)
    assert (done.succeeded, done.failed) == (2, 0)
    assert site.calls_of(scripted("ok", "good")) == 1
    assert site.calls_of(scripted("400,ok", "again")) == 2


# --- answers of the wrong form, streams nobody asked for, and what is not to be repeated ----------

CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
# the simulator makes up strings without a look at their pattern
NEVER = {"type": "object", "properties": {"a": {"pattern": "^-{50}$"}}, "required": ["a"]}


def _asking(schema: Any, text: str, **fields: Any) -> str:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return plain(text, response_format=form, **fields)


def test_an_answer_that_does_not_fit_its_schema_fails_and_can_be_read(ran: Ran) -> None:
    site = ran.site
    good, bad = site.run([_asking(CITY, "a city"), _asking(NEVER, "no city")])
    assert (good.state, "name" in json.loads(good.content or "")) == (State.SUCCEEDED, True)
    assert (bad.state, bad.error_code, bad.attempts) == (State.FAILED, "schema_mismatch", 1)
    assert "$.a: " in (bad.error_message or "")
    assert json.loads(bad.response or "")["choices"][0]["message"]["content"] == bad.content
    assert bad.completion_tokens
    (attempt,) = site.client.attempts(bad.id)
    assert not attempt.maybe_billed


LONG: dict[str, dict[str, Any]] = {
    "text": {"max_tokens": 8_000},
    "stream is false": {"max_tokens": 8_000, "stream": False},
    "schema": {"max_completion_tokens": 9_000, "response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_call_is_streamed_and_stored_like_a_plain_one(ran: Ran, kind: str) -> None:
    site = ran.site
    body = plain(f"a long story, {kind}", **LONG[kind])
    (job,) = site.run([body])
    assert job.state is State.SUCCEEDED
    assert site.calls_of(as_stream(body)) == 1
    assert site.calls_of(body) == 0
    said = _said_plainly(site, body)
    stored = json.loads(job.response or "")
    message = said["choices"][0]["message"]
    assert stored["choices"][0]["message"] == {k: v for k, v in message.items() if v is not None}
    assert stored["usage"] == said["usage"]
    assert stored["object"] == said["object"]


def _said_plainly(site: Site, body: str) -> Any:
    """What the simulator says to a body that asks for no stream."""
    url = f"{site.simulator.url}/v1/chat/completions"
    headers = {"Authorization": "Bearer x"}
    reply = httpx.post(url, content=body.encode(), headers=headers, trust_env=False)
    return reply.raise_for_status().json()


@pytest.fixture(scope="module")
def strict_site(make_site: MakeSite) -> Iterator[Site]:
    """A queue that pays for nothing twice, and gives a job two seconds."""
    site = make_site()
    site.start_worker(unknown_outcome="fail", job_deadline_seconds=2.0, call_timeout_seconds=1.0)
    yield site
    site.close()


@pytest.mark.parametrize("script", ["reset,ok", "hang,ok", "504,ok"])
def test_a_call_that_may_have_been_billed_is_not_repeated_where_that_is_forbidden(
    strict_site: Site, script: str
) -> None:
    (job,) = strict_site.run([scripted(script)])
    assert (job.state, job.attempts) == (State.FAILED, 1)
    assert "may have been billed" in (job.error_message or "")
    assert strict_site.calls_of(scripted(script)) == 1


def test_a_job_ends_with_its_last_error_at_its_deadline(strict_site: Site) -> None:
    good, slow, bad = strict_site.run(
        [scripted("500,ok"), scripted("503+retry_after=0.3"), scripted("503+retry_after=60")]
    )
    assert (good.state, good.attempts) == (State.SUCCEEDED, 2)
    for job in (slow, bad):
        assert (job.state, job.error_code) == (State.EXPIRED, "service_unavailable")
    assert strict_site.calls_of(scripted("503+retry_after=60")) == 1
    # How often it comes to be tried depends on how long the circuit rests that it may open.
    assert 1 <= strict_site.calls_of(scripted("503+retry_after=0.3")) <= 7
