"""The simulator as a server: paths, limits, ledger, control, stopping."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from worker.errors import SettingsError, WaitTimeoutError
from worker.simulator import Behaviour, SimulatorThread, run, serve

CHAT = "/v1/chat/completions"


@pytest.fixture
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as running:
        yield running


@pytest.fixture
def client(simulator: SimulatorThread) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer key"}
    with httpx.Client(base_url=simulator.url, headers=headers, timeout=5) as opened:
        yield opened


def body(text: str = "Hello?", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.1", "messages": [{"role": "user", "content": text}], **fields}


def test_a_key_is_needed_and_must_be_known(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    assert client.post(CHAT, json=body(), headers={"authorization": ""}).status_code == 401
    simulator.set(keys=("other",))
    assert client.post(CHAT, json=body()).json()["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/credits").status_code == 401
    known = {"authorization": "Bearer other"}
    assert client.post(CHAT, json=body(), headers=known).status_code == 200


def test_an_unknown_model_is_a_404_and_the_known_ones_are_listed(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    simulator.set(models=("gpt-5.1",))
    response = client.post(CHAT, json=body(model="gpt-9"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["gpt-5.1"]


def test_invalid_requests_name_the_field(client: httpx.Client) -> None:
    response = client.post(CHAT, json=body(temperature=3))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"
    assert client.post(CHAT, content=b"{").status_code == 400


def test_other_paths_and_methods_are_refused(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    for path, method, allowed in [(CHAT, "GET", "POST"), ("/healthz", "DELETE", "GET")]:
        response = client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_over_the_requests_per_minute_comes_429_with_the_wait_and_what_is_left(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    simulator.set(requests_per_minute=2)
    first = client.post(CHAT, json=body())
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    client.post(CHAT, json=body())
    refused = client.post(CHAT, json=body())
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_over_the_calls_in_flight_comes_429(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    simulator.set(max_in_flight=2)
    hanging = body(metadata={"simulate": "hang"})
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.post, CHAT, json=hanging, timeout=1) for _ in range(2)]
        simulator.wait_for(lambda now: now.in_flight == 2)
        assert client.post(CHAT, json=body()).status_code == 429
        for call in calls:
            assert isinstance(call.exception(), httpx.ReadTimeout)
    simulator.wait_for(lambda now: now.in_flight == 0)
    assert client.post(CHAT, json=body()).status_code == 200
    assert simulator.summary().peak_in_flight == 3


def test_credits_are_spent_by_answers_only_and_then_it_is_402(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    simulator.set(credits=1)
    client.post(CHAT, json=body(metadata={"simulate": "500"}))
    assert client.post(CHAT, json=body()).status_code == 200
    refused = client.post(CHAT, json=body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_quota")
    balance = client.get("/v1/credits").json()
    assert balance["data"]["user"] == {"remaining_credits": 0, "used_credits": 1}
    simulator.set(credits=5)
    assert client.post(CHAT, json=body()).status_code == 200


def test_an_idempotency_key_replays_the_first_answer_unpaid(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    simulator.set(idempotent=True, credits=1)
    headers = {"idempotency-key": "job-1"}
    first = client.post(CHAT, json=body(), headers=headers)
    again = client.post(CHAT, json=body("Other?"), headers=headers)
    assert again.json() == first.json()
    assert [call.outcome for call in simulator.calls()] == ["ok", "replayed"]
    assert simulator.calls()[1].tokens == 0


def test_the_ledger_tells_what_was_asked_and_what_came_of_it(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    headers = {"idempotency-key": "k", "x-chatqueue-job": "j", "x-client-request-id": "c"}
    client.post(CHAT, json=body(stream=True), headers=headers)
    client.post(CHAT, json=body())
    client.post(CHAT, json=body())
    first, second, third = client.get("/_simulator/ledger").json()
    assert (first["idempotency_key"], first["job"], first["client_request_id"]) == ("k", "j", "c")
    assert (first["number"], first["stream"], first["answered"]) == (1, True, True)
    assert second["body_sha256"] == third["body_sha256"] != first["body_sha256"]
    assert second["tokens"] > 0
    assert client.get("/_simulator/ledger?after=2").json() == [third]
    assert client.get("/_simulator/ledger?after=x").status_code == 400
    summary = client.get("/_simulator/summary").json()
    assert (summary["distinct_bodies"], summary["repeated_bodies"]) == (2, 1)
    assert summary["outcomes"] == {"ok": 3}
    assert summary["statuses"] == {"200": 3}
    assert client.post("/_simulator/reset").json()["calls"] == 0
    assert simulator.calls() == []


def test_without_a_ledger_calls_are_only_counted() -> None:
    with SimulatorThread(ledger=False) as simulator:
        httpx.post(simulator.url + CHAT, json=body(), headers={"authorization": "Bearer k"})
        assert simulator.calls() == []
        assert simulator.summary().calls == 1
        assert simulator.summary().distinct_bodies is None


def test_the_behaviour_is_changed_over_http_and_refused_by_field(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    changed = client.post("/_simulator/behaviour", json={"fail_rate": 1, "faults": ["503"]})
    assert changed.json()["fail_rate"] == 1
    assert client.post(CHAT, json=body()).status_code == 503
    for wrong in ({"fail_rate": 2}, {"fail_rate": "often"}):
        refused = client.post("/_simulator/behaviour", json=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "fail_rate")
    assert client.post("/_simulator/behaviour", content=b"[]").status_code == 400
    assert client.post("/_simulator/behaviour", content=b"{").status_code == 400
    assert client.get("/_simulator/behaviour").json()["faults"] == ["503"]
    with pytest.raises(SettingsError, match="seed"):
        simulator.set(seed="x")


def test_a_body_over_the_limit_is_a_413_and_one_below_it_is_read(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    assert client.post(CHAT, json=body("x" * 3_000_000)).status_code == 200
    simulator.set(max_body_bytes=1000)
    assert client.post(CHAT, json=body("x" * 3_000_000)).status_code == 413
    assert client.post("/_simulator/behaviour", content=b"x" * 2000).status_code == 413
    assert simulator.calls()[-1].outcome == "too_large"


def test_latency_and_pauses_of_a_stream_are_kept(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    simulator.set(
        latency_seconds=0.05,
        time_to_first_token_seconds=0.05,
        chunk_seconds=0.01,
        chunks=5,
    )
    assert client.post(CHAT, json=body()).elapsed.total_seconds() >= 0.05
    with client.stream("POST", CHAT, json=body(stream=True)) as response:
        text = response.read().decode()
    assert response.elapsed.total_seconds() >= 0.05 + 0.05 + 5 * 0.01
    assert text.count('"delta":{"content":') == 5
    assert text.endswith("data: [DONE]\n\n")


def test_a_client_that_goes_cancels_its_answer(
    simulator: SimulatorThread, client: httpx.Client
) -> None:
    slow = body(metadata={"simulate": "latency=60"})
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=slow, timeout=0.1)
    simulator.wait_for(lambda now: now.disconnected == 1 and now.in_flight == 0)
    (call,) = simulator.calls()
    assert (call.answered, call.disconnected) == (False, True)


def exchange(url: str, sent: bytes) -> bytes:
    """Send bytes over a bare connection and read until the end."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 0)
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_requests_sent_ahead_are_answered_in_order(simulator: SimulatorThread) -> None:
    content = json.dumps(body(metadata={"simulate": "404+latency=0.05"})).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer k\r\ncontent-length: {len(content)}\r\n"
    ahead = b"GET /healthz HTTP/1.1\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n"
    answer = exchange(simulator.url, head.encode() + b"\r\n" + content + ahead + last)
    lines = [line for line in answer.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [line.partition(b"HTTP/1.1 ")[2][:3] for line in lines] == [b"404", b"200", b"404"]
    assert b"Unknown path: /nowhere" in answer


def test_what_is_not_http_gets_a_400_and_the_end(simulator: SimulatorThread) -> None:
    assert exchange(simulator.url, b"EHLO there\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_client_that_asks_first_is_told_to_continue(simulator: SimulatorThread) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nexpect: 100-continue\r\nconnection: close\r\n"
    answer = exchange(simulator.url, head.encode() + b"content-length: 1\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 ")


def test_waiting_for_what_does_not_come_ends_with_the_counts(simulator: SimulatorThread) -> None:
    with pytest.raises(WaitTimeoutError, match="calls=0"):
        simulator.wait_for(lambda now: now.calls > 0, timeout_seconds=0.02)


def test_it_serves_in_a_loop_that_runs_already() -> None:
    async def scenario() -> None:
        simulator = await serve(Behaviour(seed=9))
        async with httpx.AsyncClient(base_url=simulator.url) as client:
            key = {"authorization": "Bearer k"}
            hanging = body(metadata={"simulate": "hang"})
            pending = asyncio.create_task(client.post(CHAT, json=hanging, headers=key))
            assert (await client.post(CHAT, json=body(), headers=key)).status_code == 200
            simulator.set(fail_rate=1.0, faults=("404",))
            assert (await client.post(CHAT, json=body(), headers=key)).status_code == 404
            assert simulator.behaviour.seed == 9
            assert simulator.ledger.summary().calls == 3
            await simulator.close()
            with pytest.raises(httpx.TransportError):
                await pending
            assert simulator.ledger.in_flight == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_program_cleanly(number: signal.Signals) -> None:
    def use_and_stop(url: str) -> None:
        httpx.post(url + CHAT, json=body(), headers={"authorization": "Bearer k"})
        os.kill(os.getpid(), number)

    def ready(url: str) -> None:
        threading.Thread(target=use_and_stop, args=(url,)).start()

    assert run(Behaviour(), ready=ready).answered == 1
