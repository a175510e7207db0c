"""One Celery task per request, around the official SDK: what `contenders.py` measures.

The broker and the API come from the environment that `contenders.py` gives to the worker.
"""

import os
from typing import Any

import openai
import redis
from celery import Celery

DONE = "peer:done"

app = Celery("peer", broker=os.environ.get("PEER_BROKER"))
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
_client: openai.OpenAI | None = None


@app.task(name="peer.ask")  # type: ignore[untyped-decorator,unused-ignore]  # celery has no types
def ask(body: dict[str, Any]) -> None:
    """Make one call, and count it where the one who waits can see it."""
    global _client  # noqa: PLW0603  # one client per process, made after the fork
    if _client is None:
        _client = openai.OpenAI(api_key="bench", base_url=f"{os.environ['PEER_URL']}/v1")
    _client.chat.completions.create(**body)
    _counter(os.environ["PEER_BROKER"]).incr(DONE)


def count() -> int:
    """How many calls were made."""
    return int(_counter(str(app.conf.broker_url)).get(DONE) or 0)


_counters: dict[str, Any] = {}


def _counter(url: str) -> Any:
    if url not in _counters:
        _counters[url] = redis.Redis.from_url(url)
    return _counters[url]
