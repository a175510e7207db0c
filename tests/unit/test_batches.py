import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batches import content_hash, new_job, read_lines, result_line
from worker.jobs.lines import RequestLine, check_line
from worker.jobs.options import JobOptions
from worker.jobs.states import State
from worker.store.results import Result

ANSWER = '{"id": "chatcmpl-1",\n  "choices": []}'


def result(**fields: Any) -> Result:
    values: dict[str, Any] = {
        "job_id": "job_0123", "custom_id": "line-1", "state": State.SUCCEEDED, "status": 200,
        "request_id": "req-1", "response": ANSWER, "error_code": None, "error_message": None,
    }  # fmt: skip
    return Result(**values | fields)


def failed(**fields: Any) -> Result:
    values: dict[str, Any] = {
        "state": State.FAILED, "status": 400, "response": None, "error_code": "bad_request",
        "error_message": "no such model",
    }  # fmt: skip
    return result(**values | fields)


def written(one: Result) -> dict[str, Any]:
    line = result_line(one)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "\r" not in line
    found = json.loads(line)
    assert list(found) == ["id", "custom_id", "response", "error"]
    assert isinstance(found, dict)
    return found


def test_an_answer_is_written_in_the_form_of_the_batch_api() -> None:
    assert written(result()) == {
        "id": "batch_req_0123",
        "custom_id": "line-1",
        "response": {"status_code": 200, "request_id": "req-1", "body": json.loads(ANSWER)},
        "error": None,
    }


def test_an_answer_is_written_verbatim_but_for_its_line_ends() -> None:
    body = '{"a": 1.0,\r\n "b": "\\u00e9\\n",\t"big": 12345678901234567890}\n'
    flat = '{"a": 1.0,   "b": "\\u00e9\\n",\t"big": 12345678901234567890}'
    assert f'"body": {flat}}}' in result_line(result(response=body))


def test_an_answer_without_a_request_id_has_an_empty_one() -> None:
    assert written(result(request_id=None))["response"]["request_id"] == ""


def test_a_refusal_is_written_in_the_words_of_the_upstream() -> None:
    body = '{"error": {"code": "x", "message": "y",\n "param": "model"}}'
    found = written(failed(status=422, response=body))
    assert found["error"] is None
    assert found["response"] == {
        "status_code": 422,
        "request_id": "req-1",
        "body": json.loads(body),
    }


@pytest.mark.parametrize("body", [None, "", "<html>no</html>", "[1]", '{"error": "flat"}', "null"])
def test_a_refusal_without_such_words_is_written_in_ours(body: str | None) -> None:
    assert written(failed(response=body))["response"]["body"] == {
        "error": {"code": "bad_request", "message": "no such model"}
    }


@pytest.mark.parametrize("status", [None, 200])
def test_a_request_without_a_refusing_reply_is_an_error_of_its_own(status: int | None) -> None:
    found = written(failed(status=status, error_code="stream_cut", error_message="cut"))
    assert found["response"] is None
    assert found["error"] == {"code": "stream_cut", "message": "cut"}


@pytest.mark.parametrize(
    ("state", "code"), [(State.CANCELLED, "batch_cancelled"), (State.EXPIRED, "batch_expired")]
)
@pytest.mark.parametrize("status", [None, 500])
def test_what_never_ran_to_its_end_says_why(state: State, code: str, status: int | None) -> None:
    found = written(result(state=state, status=status, response=None, error_code="earlier"))
    assert found["response"] is None
    assert found["error"]["code"] == code
    assert found["error"]["message"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64))
def test_any_custom_id_comes_back_as_it_was(custom_id: str) -> None:
    assert written(result(custom_id=custom_id))["custom_id"] == custom_id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.sampled_from([None, 0, 2]), st.booleans())
def test_any_answer_comes_back_as_it_was(
    body: dict[str, Any], indent: int | None, crlf: bool
) -> None:
    text = json.dumps(body, indent=indent)
    text = text.replace("\n", "\r\n") if crlf else text
    assert written(result(response=text))["response"]["body"] == body


def test_lines_are_read_one_by_one_with_their_ends() -> None:
    assert list(read_lines(io.BytesIO(b"a\r\n\nb"))) == [b"a\r\n", b"\n", b"b"]


def test_a_file_is_known_by_its_content(tmp_path: Any) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert content_hash(path) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_job_carries_its_options() -> None:
    options = JobOptions(("https://example.com",), 3)
    request = check_line(
        b'{"model": "m", "messages": [{"role": "user", "content": ""}]}', 1, options
    )
    assert isinstance(request, RequestLine)
    job = new_job(request, 1)
    assert (job.endpoints, job.reasks) == (options.endpoints, options.reasks)
