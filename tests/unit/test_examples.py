import json
from pathlib import Path
from typing import Any

import pytest

from worker.jobs.lines import RequestLine, check_line

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples" / "requests.jsonl"
LINES = EXAMPLES.read_bytes().splitlines(keepends=True)
BODIES: list[dict[str, Any]] = [json.loads(line)["body"] for line in LINES]


def test_there_are_two_hundred_examples() -> None:
    assert len(LINES) == 200


def test_every_example_passes_without_fault_or_warning() -> None:
    results = [check_line(raw, number) for number, raw in enumerate(LINES, 1)]
    assert [
        result for result in results if not isinstance(result, RequestLine) or result.warnings
    ] == []


def test_no_example_has_the_id_or_the_messages_of_another() -> None:
    assert len({json.loads(line)["custom_id"] for line in LINES}) == len(LINES)
    assert len({json.dumps(body["messages"]) for body in BODIES}) == len(BODIES)


@pytest.mark.parametrize(
    "field",
    [
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "stream", "stop"),
        *("stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n"),
        *("frequency_penalty", "presence_penalty", "seed", "logprobs", "reasoning_effort"),
        *("metadata", "user"),
    ],
)
def test_every_field_of_the_reference_is_shown_at_work(field: str) -> None:
    assert any(field in body for body in BODIES)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_every_role_is_shown_at_work(role: str) -> None:
    assert any(message["role"] == role for body in BODIES for message in body["messages"])


@pytest.mark.parametrize("model", ["gpt-5.1", "gpt-5.1-chat", "gpt-5.1-thinking"])
def test_every_model_is_shown_at_work(model: str) -> None:
    assert any(body["model"] == model for body in BODIES)


@pytest.mark.parametrize("start", [b'"https://', b'"data:image/png;base64,'])
def test_both_ways_to_send_an_image_are_shown(start: bytes) -> None:
    assert any(b'"url": ' + start in line for line in LINES)


def test_some_examples_are_several_kilobytes_long() -> None:
    assert sum(len(line) > 3_000 for line in LINES) >= 5
