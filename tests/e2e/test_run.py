"""`chatqueue run`: a file in, the answers out, whatever happens in between."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.e2e.conftest import EXAMPLES, Shell, lines_of, pointing_at, question
from worker.simulator import Behaviour, SimulatorThread

LINES = 2_000


def test_the_examples_are_answered_without_a_key_and_without_a_server(shell: Shell) -> None:
    done = shell.run("run", EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert "EVOLINK_API_KEY is not set" in done.stderr
    assert re.search(r"^Flower: http://127\.0\.0\.1:\d+$", done.stderr, re.MULTILINE)
    assert "200/200 · 0 failed · " in done.stderr
    assert re.fullmatch(
        r"200 succeeded, 0 failed, 0 waiting\n"
        r"tokens: \d+ in, \d+ of them cached, \d+ out, \d+ of them reasoning\n"
        r"time: [\d.]+ s, [\d.]+ jobs/s\n"
        r"results: requests\.results\.jsonl\n",
        done.stdout,
    )
    _check_results(shell.folder / "requests.results.jsonl")
    assert not (shell.folder / "requests.errors.jsonl").exists()
    assert not list(shell.folder.glob(".*partial"))
    assert not (shell.folder / "home" / "stack.json").exists()  # nothing is left running


def _check_results(path: Path) -> None:
    found = lines_of(path)
    asked = [json.loads(text) for text in EXAMPLES.read_text().splitlines()]
    assert [one["custom_id"] for one in found] == [one["custom_id"] for one in asked]
    for one in found:
        assert one.keys() == {"id", "custom_id", "response", "error"}
        assert one["id"].startswith("batch_req_")
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["request_id"]
        body = one["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["finish_reason"] in {"stop", "tool_calls", "length"}
        assert body["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_run_that_was_broken_off_goes_on_and_pays_for_nothing_twice(
    shell: Shell, number: signal.Signals, status: int
) -> None:
    with SimulatorThread(Behaviour(latency_seconds=0.2)) as simulator:
        shell.variables = pointing_at(simulator) | {"CHATQUEUE_MAX_IN_FLIGHT": "32"}
        file = shell.write("many.jsonl", (question(f"question {n}") for n in range(LINES)))
        first = shell.start("run", file, "-o", "out.jsonl")
        wait_until(lambda: simulator.summary().calls >= LINES // 4, "a quarter is asked", 60)
        first.send_signal(number)
        assert first.wait(60) == status
        assert not (shell.folder / "out.jsonl").exists()
        half = simulator.summary().calls
        assert half < LINES

        second = shell.run("run", file, "-o", "out.jsonl")
        assert second.returncode == 0, second.stderr
        assert re.search(r"going on with batch_\w+: \d+ of 2000 are done", second.stderr)
        assert f"{LINES} succeeded, 0 failed, 0 waiting" in second.stdout
        found = lines_of(shell.folder / "out.jsonl")
        assert [one["custom_id"] for one in found] == [str(n) for n in range(1, LINES + 1)]
        summary = simulator.summary()
        assert (summary.calls, summary.repeated_bodies) == (LINES, 0)
        assert summary.disconnected == 0
