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
]
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


def _check(site: Site, name: str) -> int:
    """Run a batch, check every answer, and return how many calls it took."""
    bodies = _requests(name)
    jobs = site.run(bodies)
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    for body, job in zip(bodies, jobs, strict=True):
        if "weather" in body:
            (call,) = job.tool_calls
            assert (call.name, json.loads(call.arguments)) == ("get_weather", {"town": "Ulm"})
            assert job.finish_reason == "tool_calls"
        elif "think" in body:
            assert (job.content, job.finish_reason) == ("It is so.", "stop")
            assert job.reasoning_content == "First this, then that."
        else:
            assert (job.content, job.finish_reason) == ("A plain answer, in pieces. ✓", "stop")
    return sum(job.attempts for job in jobs)


def test_a_batch_of_all_kinds_is_answered_at_the_first_call(site: Site) -> None:
    assert _check(site, "calm") == len(_requests("calm"))


def test_a_batch_is_answered_amid_chaos(site: Site, aimock: str) -> None:
    chaos = {"dropRate": 0.2, "malformedRate": 0.1, "disconnectRate": 0.1}
    httpx.post(f"{aimock}/__aimock/chaos", json=chaos, trust_env=False).raise_for_status()
    try:
        assert _check(site, "chaos") > len(_requests("chaos"))
    finally:
        httpx.delete(f"{aimock}/__aimock/chaos", trust_env=False).raise_for_status()
