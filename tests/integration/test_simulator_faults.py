"""Each fault, as a client sees it over a real connection."""

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from worker.simulator import FAULTS, Behaviour, SimulatorThread
from worker.simulator.faults import STATUS_FAULTS

SEEN_ELSEWHERE = {"reset", "close", "hang", "slow_drip", "huge"}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    behaviour = Behaviour(drip_seconds=0.001, huge_bytes=5_000_000, retry_after_seconds=0.25)
    with SimulatorThread(behaviour) as running:
        yield running


@pytest.fixture(scope="module")
def client(simulator: SimulatorThread) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer key"}
    with httpx.Client(base_url=simulator.url, headers=headers, timeout=5) as opened:
        yield opened


def body(script: str, **fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": f"Meet {script}"}
    metadata = {"simulate": script}
    return {"model": "gpt-5.1", "messages": [message], "metadata": metadata, **fields}


def post(client: httpx.Client, script: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=body(script, **fields))


def raw(simulator: SimulatorThread, script: str) -> socket.socket:
    """Send a request over a bare socket."""
    parts = urlsplit(simulator.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5)
    sent = json.dumps(body(script)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\ncontent-length: {len(sent)}\r\n\r\n"  # noqa: E501 - one header block
    connection.sendall(head.encode() + sent)
    return connection


@pytest.mark.parametrize("fault", sorted(STATUS_FAULTS))
def test_a_status_fault_has_its_status_and_body(client: httpx.Client, fault: str) -> None:
    expected = STATUS_FAULTS[fault]
    response = post(client, fault)
    assert response.status_code == expected.status
    assert re.fullmatch("req_[0-9a-f]{16}", response.headers["x-request-id"])
    sent = expected.body.replace(b"REQUEST_ID", response.headers["x-request-id"].encode())
    assert response.content == sent
    assert response.headers.get("retry-after-ms") == ("250" if expected.waits else None)
    assert response.headers.get("retry-after") == ("1" if expected.waits else None)


def test_every_body_shape_of_the_reference_occurs(client: httpx.Client) -> None:
    assert post(client, "402").json()["error"]["code"] == 402
    assert "request id: req_" in post(client, "429_quota").json()["error"]["message"]
    assert post(client, "429").json()["code"] == 429
    assert isinstance(post(client, "500").json()["error"], str)
    assert post(client, "422").json()["success"] is False
    assert "<html>" in post(client, "502").text
    assert post(client, "500_empty").content == b""
    assert post(client, "500_no_retry").headers["x-should-retry"] == "false"


def test_reset_breaks_the_connection_off_before_any_answer(simulator: SimulatorThread) -> None:
    with raw(simulator, "reset") as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_close_ends_the_connection_before_any_answer(simulator: SimulatorThread) -> None:
    with raw(simulator, "close") as connection:
        assert connection.recv(1) == b""


def test_hang_never_answers_and_ends_with_the_client(simulator: SimulatorThread) -> None:
    before = simulator.summary().disconnected
    with raw(simulator, "hang") as connection:
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert simulator.summary().in_flight == 1
    simulator.wait_for(lambda now: now.disconnected == before + 1 and now.in_flight == 0)
    assert simulator.calls()[-1].status == 0


@pytest.mark.parametrize("fault", ["cut_body", "cut_stream", "cut_stream_abrupt"])
def test_a_plain_answer_cut_short_breaks_its_content_length(
    client: httpx.Client, fault: str
) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
        post(client, fault)


@pytest.mark.parametrize(("fault", "done"), [("cut_stream", False), ("cut_stream_done", True)])
def test_a_stream_can_end_cleanly_without_a_finish_reason(
    client: httpx.Client, fault: str, done: bool
) -> None:
    text = post(client, fault, stream=True).text
    assert '"content":"' in text
    assert '"finish_reason":"' not in text
    assert text.endswith("data: [DONE]\n\n") is done


def test_an_abruptly_cut_stream_has_no_last_chunk(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        post(client, "cut_stream_abrupt", stream=True)


def test_slow_drip_sends_byte_by_byte(client: httpx.Client) -> None:
    started = time.monotonic()
    with client.stream("POST", "/v1/chat/completions", json=body("slow_drip")) as response:
        pieces = list(response.iter_raw())
    size = int(response.headers["content-length"])
    assert sum(map(len, pieces)) == size
    assert time.monotonic() - started >= size * 0.001


@pytest.mark.parametrize("stream", [False, True])
def test_huge_is_a_valid_answer_of_the_size_that_is_set(client: httpx.Client, stream: bool) -> None:
    response = post(client, "huge", stream=stream)
    assert len(response.content) == 5_000_000
    if not stream:
        assert response.json()["choices"][0]["message"]["content"].endswith("xxx")


def test_pages_and_errors_come_with_status_200(client: httpx.Client) -> None:
    page = post(client, "html_200")
    assert (page.status_code, page.headers["content-type"][:9]) == (200, "text/html")
    error = post(client, "error_200")
    assert (error.status_code, list(error.json())) == (200, ["error"])
    empty = post(client, "empty_200")
    assert (empty.status_code, empty.content) == (200, b"")


def test_a_redirect_leads_to_another_host(client: httpx.Client) -> None:
    response = post(client, "redirect")
    assert response.status_code == 307
    assert response.headers["location"].startswith("https://elsewhere.invalid/")


@pytest.mark.parametrize("stream", [False, True])
def test_spoilt_answers_are_neither_utf8_nor_json(client: httpx.Client, stream: bool) -> None:
    with pytest.raises(UnicodeDecodeError):
        post(client, "bad_utf8", stream=stream).content.decode()
    text = post(client, "bad_json", stream=stream).content.decode()
    first = text.partition("\n\n")[0].removeprefix("data: ")
    with pytest.raises(json.JSONDecodeError):
        json.loads(first)


def test_an_error_event_comes_amid_a_stream(client: httpx.Client) -> None:
    text = post(client, "stream_error_event", stream=True).text
    parts = [part for part in text.split("\n\n") if part.startswith("data: {")]
    assert "error" in json.loads(parts[-1].removeprefix("data: "))
    assert "choices" in json.loads(parts[0].removeprefix("data: "))


@pytest.mark.parametrize("reason", ["content_filter", "length"])
def test_an_answer_can_end_early_with_its_reason(client: httpx.Client, reason: str) -> None:
    assert post(client, reason).json()["choices"][0]["finish_reason"] == reason
    assert f'"finish_reason":"{reason}"' in post(client, reason, stream=True).text


def test_the_last_step_of_a_script_repeats_for_that_body_only(client: httpx.Client) -> None:
    script = "500,503+latency=0.01,ok"
    statuses = [post(client, script).status_code for _ in range(4)]
    assert statuses == [500, 503, 200, 200]
    assert post(client, script, user="another").status_code == 500


def test_a_script_with_an_unknown_word_is_an_invalid_request(client: httpx.Client) -> None:
    error = post(client, "explode").json()["error"]
    assert error["param"] == "metadata.simulate"
    assert "'explode'" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", sorted(FAULTS - SEEN_ELSEWHERE))
def test_the_ledger_names_every_fault_and_the_simulator_goes_on(
    client: httpx.Client, simulator: SimulatorThread, fault: str, stream: bool
) -> None:
    script = f"{fault},ok"
    try:
        post(client, script, stream=stream)
    except httpx.RemoteProtocolError:
        assert fault.startswith("cut_")
    assert simulator.calls()[-1].outcome == fault
    assert post(client, script, stream=stream).status_code == 200
