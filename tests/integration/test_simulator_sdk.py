"""The official SDK takes the simulator for the real thing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from worker.simulator import SimulatorThread

T = TypeVar("T")

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How many jobs wait?"}]
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "count_jobs",
            "parameters": {
                "type": "object",
                "properties": {"state": {"type": "string", "enum": ["queued", "running"]}},
                "required": ["state"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as running:
        yield running


def ask(simulator: SimulatorThread, scenario: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
    async def main() -> T:
        url = f"{simulator.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=2) as client:
            return await scenario(client)

    return asyncio.run(main())


async def plain_text(client: openai.AsyncOpenAI) -> str | None:
    answer = await client.chat.completions.create(model="gpt-5.1", messages=MESSAGES)
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    return answer.choices[0].message.content


def test_a_plain_answer_and_a_stream_say_the_same(simulator: SimulatorThread) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        text, usage = "", None
        stream = await client.chat.completions.create(
            model="gpt-5.1", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == await plain_text(client)
        assert usage is not None

    ask(simulator, scenario)


def test_a_tool_call_has_arguments_the_sdk_can_use(simulator: SimulatorThread) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="gpt-5.1", messages=MESSAGES, tools=TOOLS
        )
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].type == "function"
        assert calls[0].function.name == "count_jobs"
        assert calls[0].function.arguments in {'{"state":"queued"}', '{"state":"running"}'}

    ask(simulator, scenario)


def test_the_models_are_listed(simulator: SimulatorThread) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        listed = [model.id async for model in client.models.list()]
        assert "gpt-5.1-thinking" in listed

    ask(simulator, scenario)


def test_errors_are_of_the_sdks_own_kinds_and_transient_ones_are_retried(
    simulator: SimulatorThread,
) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(
                model="gpt-5.1", messages=MESSAGES, metadata={"simulate": "404"}
            )
        scripted = {"simulate": "429+retry_after=0.01,ok"}
        answer = await client.chat.completions.create(
            model="gpt-5.1", messages=MESSAGES, metadata=scripted
        )
        assert answer.choices[0].finish_reason == "stop"

    ask(simulator, scenario)
    assert [call.status for call in simulator.calls()[-2:]] == [429, 200]
