"""Another fake of the API that was not made here, of another language: `@copilotkit/aimock`."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, plain
from worker.jobs.states import State
from worker.jobs.views import Job

pytestmark = pytest.mark.services

ANSWERS: list[dict[str, Any]] = [
    {
        "match": {"userMessage": "weather"},
        "response": {"toolCalls": [{"name": "get_weather", "arguments": {"town": "Ulm"}}]},
    },
    {
        "match": {"userMessage": "think"},
        "response": {"content": "It is so.", "reasoning": "First this, then that."},
    },
    {"match": {"userMessage": "plain"}, "response": {"content": "A plain answer, in pieces. ✓"}},
    {
        "match": {"userMessage": "truncated"},
        "response": {"content": "Of this answer not all that there is will come, by far."},
        "truncateAfterChunks": 3,
        "latency": 50,
    },
]
CHAOS: dict[str, float] = {
    "dropRate": 0.15,
    "malformedRate": 0.1,
    "disconnectRate": 0.1,
    "rateLimitRate": 0.05,
    "latencyMs": 20,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an aimock, newly installed."""
    folder = tmp_path_factory.mktemp("aimock")
    program = _installed(folder)
    (folder / "answers.json").write_text(json.dumps({"fixtures": ANSWERS}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--port", str(port), "--fixtures", "answers.json", "--strict"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url) or process.poll() is not None, "aimock answers")
        assert process.poll() is None, (folder / "log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _installed(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no Node.js with npm")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]
    try:
        subprocess.run(
            [*command, str(folder), "@copilotkit/aimock"],
            check=True,
            capture_output=True,
            timeout=120,
        )
    except subprocess.SubprocessError as error:
        pytest.skip(f"@copilotkit/aimock cannot be installed: {error}")
    return folder / "node_modules" / ".bin" / "llmock"


def _answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False, timeout=1)
    except httpx.HTTPError:
        return False
    return True


@pytest.fixture(scope="module")
def site(make_site: MakeSite, aimock: str) -> Iterator[Site]:
    made = make_site()
    made.start_worker(text_endpoints=(aimock,), multimodal_endpoints=(aimock,), max_attempts=12)
    yield made
    made.close()


@pytest.fixture(scope="module")
def impatient(make_site: MakeSite, aimock: str) -> Iterator[Site]:
    """A site whose jobs get few attempts, so that some of them fail."""
    made = make_site()
    made.start_worker(text_endpoints=(aimock,), multimodal_endpoints=(aimock,), max_attempts=2)
    yield made
    made.close()


@pytest.fixture
def chaos(aimock: str) -> Iterator[None]:
    url = f"{aimock}/__aimock/chaos"
    httpx.post(url, json=CHAOS, trust_env=False).raise_for_status()
    yield
    httpx.delete(url, trust_env=False).raise_for_status()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "think": {"model": "gpt-5.1-thinking"},
    "weather": {"tools": [TOOL]},
}


def _requests(name: str) -> list[str]:
    return [
        plain(f"{name} {n}: {kind}", stream=stream, **fields)
        for n in range(5)
        for stream in (False, True)
        for kind, fields in KINDS.items()
    ]


def _check(body: str, job: Job) -> None:
    """Check that an answer is the whole one."""
    assert job.state is State.SUCCEEDED
    if "weather" in body:
        (call,) = job.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"town": "Ulm"})
        assert job.finish_reason == "tool_calls"
    elif "think" in body:
        assert (job.content, job.finish_reason) == ("It is so.", "stop")
        assert job.reasoning_content == "First this, then that."
    else:
        assert (job.content, job.finish_reason) == ("A plain answer, in pieces. ✓", "stop")


def _run(site: Site, name: str) -> int:
    """Run a batch, check every answer, and return how many calls it took."""
    bodies = _requests(name)
    jobs = site.run(bodies)
    for body, job in zip(bodies, jobs, strict=True):
        _check(body, job)
    return sum(len(site.client.attempts(job.id)) for job in jobs)


def test_a_batch_of_all_kinds_is_answered_at_the_first_call(site: Site) -> None:
    assert _run(site, "calm") == len(_requests("calm"))


@pytest.mark.usefixtures("chaos")
def test_a_batch_is_answered_amid_chaos(site: Site) -> None:
    assert _run(site, "chaos") > len(_requests("chaos"))


@pytest.mark.usefixtures("chaos")
def test_amid_chaos_a_job_ends_with_a_whole_answer_or_says_why_not(impatient: Site) -> None:
    bodies = [*_requests("some"), *_requests("fail")]
    jobs = impatient.run(bodies)
    for body, job in zip(bodies, jobs, strict=True):
        *failed, last = impatient.client.attempts(job.id)
        assert all(one.error_code for one in failed)
        if job.state is State.SUCCEEDED:
            _check(body, job)
            assert last.error_code is None
        else:
            assert job.state is State.FAILED
            assert job.error_code == last.error_code is not None
            assert job.error_message


def test_a_stream_that_is_always_truncated_never_succeeds(impatient: Site) -> None:
    (job,) = impatient.run([plain("truncated", stream=True)])
    assert job.state is State.FAILED
    assert job.error_code in {"payload_cut", "connection_reset", "server_disconnected"}
    whole = ANSWERS[-1]["response"]["content"]
    assert job.content
    assert job.content != whole
    assert whole.startswith(job.content)
    assert all(one.maybe_billed for one in impatient.client.attempts(job.id))
