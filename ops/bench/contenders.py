"""The others: ways to make many calls without chatqueue, each as its own documentation has it.

    python -m ops.bench.contenders httpx-aiohttp --url http://127.0.0.1:8089 --requests FILE

Run by `ops.bench.cases`, one in a process of its own. Each makes all calls of the file, with
so many in flight, and stores nothing; printed is what it cost from the moment it was ready. The
bare loops are the floor: what the calls alone cost. Where the requests ask for streams, the loops
read the bytes and no more; the SDK gives each event, and its text is put together.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ops.bench.ground import peak_mb

Body = dict[str, Any]
Ask = Callable[[Body], Awaitable[int]]
"""Makes one call; returns the tokens of its answer."""

KEY = "bench"
PREFORKED = 32
"""Processes of a Celery prefork pool: each waits for one call, and takes 70 MB."""


def main() -> None:
    """Run one contender and print what it cost, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--broker-url", default="")
    options = parser.parse_args()
    bodies = [json.loads(line)["body"] for line in options.requests.open(encoding="utf-8")]
    print(json.dumps(CONTENDERS[options.name](bodies, options)))


def _cost(answers: int, tokens: int, seconds: float, cpu: float, peak_mb: float) -> Body:
    return {
        "answers": answers,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "cpu_ms_per_job": round(cpu / answers * 1000, 3),
        "jobs_per_second": round(answers / seconds, 1),
        "peak_mb": round(peak_mb, 1),
    }


def _measured(work: Awaitable[list[int]]) -> Awaitable[Body]:
    async def measure() -> Body:
        began, cpu = time.monotonic(), time.process_time()
        tokens = await work
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        return _cost(len(tokens), sum(tokens), seconds, cpu, peak_mb())

    return measure()


async def _all(bodies: Iterable[Body], ask: Ask, in_flight: int) -> list[int]:
    """Make all calls, so many at a time: as many workers, one list."""
    left = iter(bodies)

    async def work() -> list[int]:
        return [await ask(body) for body in left]

    found = await asyncio.gather(*(work() for _ in range(in_flight)))
    return [tokens for one in found for tokens in one]


# --- the floor ------------------------------------------------------------------------------------


def aiohttp_loop(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """A loop around aiohttp: no retry, no limit, nothing stored."""
    import aiohttp  # noqa: PLC0415  # each contender pays for its own imports

    async def run() -> Body:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def ask(body: Body) -> int:
                async with session.post(f"{options.url}/v1/chat/completions", json=body) as reply:
                    if "stream" in body:
                        return sum([len(piece) async for piece in reply.content.iter_any()])
                    return int((await reply.json())["usage"]["total_tokens"])

            return await _measured(_all(bodies, ask, options.in_flight))

    return asyncio.run(run())


def httpx_aiohttp_loop(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """The same around httpx on the aiohttp transport, which chatqueue uses."""
    import httpx  # noqa: PLC0415  # as above
    from httpx_aiohttp import HttpxAiohttpClient  # noqa: PLC0415  # as above

    async def run() -> Body:
        limits = httpx.Limits(max_connections=options.in_flight)
        headers = {"authorization": f"Bearer {KEY}"}
        async with HttpxAiohttpClient(limits=limits, headers=headers, timeout=600) as client:

            async def ask(body: Body) -> int:
                url = f"{options.url}/v1/chat/completions"
                if "stream" in body:
                    async with client.stream("POST", url, json=body) as reply:
                        return sum([len(piece) async for piece in reply.aiter_bytes()])
                reply = await client.post(url, json=body)
                return int(reply.json()["usage"]["total_tokens"])

            return await _measured(_all(bodies, ask, options.in_flight))

    return asyncio.run(run())


# --- the official SDK -----------------------------------------------------------------------------


def _sdk(bodies: Sequence[Body], options: argparse.Namespace, http_client: Any) -> Body:
    import openai  # noqa: PLC0415  # as above

    async def run() -> Body:
        client = openai.AsyncOpenAI(
            api_key=KEY, base_url=f"{options.url}/v1", http_client=http_client()
        )

        async def ask(body: Body) -> int:
            answer: Any = await client.chat.completions.create(**body)
            if "stream" in body:
                pieces = [one.choices[0].delta.content or "" async for one in answer if one.choices]
                return len("".join(pieces))
            return int(answer.usage.total_tokens)

        async with client:
            return await _measured(_all(bodies, ask, options.in_flight))

    return asyncio.run(run())


def sdk(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """The official SDK as it comes."""
    return _sdk(bodies, options, lambda: None)


def sdk_aiohttp(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """The official SDK with the aiohttp client that it recommends for many calls."""
    import openai  # noqa: PLC0415  # as above

    return _sdk(bodies, options, openai.DefaultAioHttpClient)


# --- the well-known script ------------------------------------------------------------------------


def parallel_script(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """The approach of the well-known script.

    A loop looks each millisecond whether its budget of requests lets the next call go, and each
    answer is appended to a file that is opened for it.
    """
    import aiohttp  # noqa: PLC0415  # as above

    per_second = 1e9  # no limit is near: what is measured is the way of working

    async def run() -> Body:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.jsonl"
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

                async def call(body: Body) -> int:
                    headers = {"authorization": f"Bearer {KEY}"}
                    url = f"{options.url}/v1/chat/completions"
                    async with session.post(url, headers=headers, json=body) as reply:
                        answer = await reply.json()
                    with path.open("a", encoding="utf-8") as file:  # once for each, as it does
                        file.write(json.dumps([body, answer]) + "\n")
                    return int(answer["usage"]["total_tokens"])

                async def script() -> list[int]:
                    available, updated = per_second, time.time()
                    tasks: list[asyncio.Task[int]] = []
                    running: set[asyncio.Task[int]] = set()
                    left = iter(bodies)
                    body = next(left, None)
                    while body is not None:
                        now = time.time()
                        available = min(available + per_second * (now - updated), per_second)
                        updated = now
                        if available >= 1 and len(running) < options.in_flight:
                            available -= 1
                            task = asyncio.create_task(call(body))
                            running.add(task)
                            task.add_done_callback(running.discard)
                            tasks.append(task)
                            body = next(left, None)
                        await asyncio.sleep(0.001)
                    return await asyncio.gather(*tasks)

                return await _measured(script())

    return asyncio.run(run())


# --- bulk libraries -------------------------------------------------------------------------------


def litellm(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """Litellm's acompletion, with its logging of everything off."""
    # An extra, which the checks do not install; imported here as above.
    import litellm as library  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    library.suppress_debug_info = True

    async def ask(body: Body) -> int:
        given = {**body, "model": f"openai/{body['model']}"}
        answer = await library.acompletion(
            **given, api_base=f"{options.url}/v1", api_key=KEY, num_retries=2
        )
        return int(answer.usage.total_tokens)

    async def run() -> Body:
        return await _measured(_all(bodies, ask, options.in_flight))

    return asyncio.run(run())


def langchain(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
    """langchain-openai's abatch, with its limit of calls at a time."""
    # As above.
    from langchain_openai import (  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
        ChatOpenAI,
    )

    model = ChatOpenAI(model="gpt-5.1", base_url=f"{options.url}/v1", api_key=KEY)

    async def batch() -> list[int]:
        prompts: list[Any] = [[("user", body["messages"][0]["content"])] for body in bodies]
        answers: list[Any] = await model.abatch(prompts, {"max_concurrency": options.in_flight})
        return [answer.usage_metadata["total_tokens"] for answer in answers]

    async def run() -> Body:
        return await _measured(batch())

    return asyncio.run(run())


# --- one Celery task per request ------------------------------------------------------------------


def _celery(pool: str, concurrency: int) -> Callable[[Sequence[Body], argparse.Namespace], Body]:
    def run(bodies: Sequence[Body], options: argparse.Namespace) -> Body:
        from ops.bench.celery_peer import app, ask, count  # noqa: PLC0415  # as above

        environment = {**os.environ, "PEER_BROKER": options.broker_url, "PEER_URL": options.url}
        words = ["-A", "ops.bench.celery_peer", "worker", f"--pool={pool}", "-c", str(concurrency)]
        words += ["-l", "ERROR", "--without-gossip", "--without-mingle", "-E"]
        app.conf.broker_url = options.broker_url
        with subprocess.Popen(
            [sys.executable, "-m", "celery", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                return _watched(psutil.Process(process.pid), bodies, ask, count)
            finally:
                process.terminate()

    run.__doc__ = f"One Celery task per request, {pool} pool of {concurrency}, the SDK in each."
    return run


def _watched(
    worker: psutil.Process, bodies: Sequence[Body], ask: Any, count: Callable[[], int]
) -> Body:
    ask.delay(bodies[0])
    while count() < 1:  # it is up
        time.sleep(0.05)
    before, peak = _cpu(worker), 0.0
    began = time.monotonic()
    for body in bodies:
        ask.delay(body)
    while (done := count()) < len(bodies) + 1:
        peak = max(peak, _memory(worker))
        time.sleep(0.1)
    seconds = time.monotonic() - began
    return _cost(done - 1, 0, seconds, _cpu(worker) - before, peak)


def _family(worker: psutil.Process) -> list[psutil.Process]:
    return [worker, *worker.children(recursive=True)]


def _cpu(worker: psutil.Process) -> float:
    total = 0.0
    for one in _family(worker):
        with suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _memory(worker: psutil.Process) -> float:
    total = 0
    for one in _family(worker):
        with suppress(psutil.Error):
            total += one.memory_info().rss
    return total / 2**20


CONTENDERS: dict[str, Callable[[Sequence[Body], argparse.Namespace], Body]] = {
    "aiohttp": aiohttp_loop,
    "httpx-aiohttp": httpx_aiohttp_loop,
    "sdk": sdk,
    "sdk-aiohttp": sdk_aiohttp,
    "parallel-script": parallel_script,
    "litellm": litellm,
    "langchain": langchain,
    "celery-prefork": _celery("prefork", PREFORKED),
    "celery-threads": _celery("threads", 500),
    "celery-gevent": _celery("gevent", 500),
}


if __name__ == "__main__":
    main()
