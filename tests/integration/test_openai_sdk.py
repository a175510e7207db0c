"""The official SDK without asyncio takes the simulator for the real thing, too."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from worker.simulator import Behaviour, SimulatorThread

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "rename",
            "parameters": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
            },
        },
    }
]
MESSAGES: Any = [{"role": "user", "content": "Rename it."}]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        SimulatorThread(Behaviour(keys=("key",))) as simulator,
        openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="key", max_retries=0) as client,
    ):
        yield client


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-5.1", messages=MESSAGES)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_plain_answer_says(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="gpt-5.1", messages=MESSAGES)
    with client.chat.completions.create(model="gpt-5.1", messages=MESSAGES, stream=True) as stream:
        chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in chunks)
    assert text == plain.choices[0].message.content
    assert chunks[-1].finish_reason == "stop"


def test_the_fragments_of_a_streamed_tool_call_make_the_plain_one(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="gpt-5.1", messages=MESSAGES, tools=TOOLS, stream=True
    ) as stream:
        deltas = [d for c in stream if c.choices for d in c.choices[0].delta.tool_calls or ()]
    names = [d.function.name for d in deltas if d.function and d.function.name]
    arguments = "".join(d.function.arguments or "" for d in deltas if d.function)
    assert names == ["rename"]
    assert json.loads(arguments).keys() == {"name"}


def test_thinking_comes_as_reasoning_content(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-5.1-thinking", messages=MESSAGES)
    assert (answer.choices[0].message.model_extra or {})["reasoning_content"]


def test_a_wrong_key_is_an_authentication_error(client: openai.OpenAI) -> None:
    wrong = client.with_options(api_key="another")
    with pytest.raises(openai.AuthenticationError):
        wrong.chat.completions.create(model="gpt-5.1", messages=MESSAGES)
