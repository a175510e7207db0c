import json

import pytest

from worker.errors import InvalidRequestsError
from worker.jobs.changes import changed, check_changes

BODY = '{"model": "gpt-5.1", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5}'


def test_fields_are_replaced_added_and_taken_away() -> None:
    changes = {"model": "gpt-5.1-thinking", "temperature": None, "max_tokens": 100}
    found = changed(BODY, changes, 1, "a")
    assert found == {
        "model": "gpt-5.1-thinking",
        "messages": json.loads(BODY)["messages"],
        "max_tokens": 100,
    }


def test_a_change_that_makes_no_request_names_line_and_field() -> None:
    with pytest.raises(InvalidRequestsError, match=r"line 7: a: max_tokens: "):
        changed(BODY, {"max_tokens": "many"}, 7, "a")


def test_references_to_images_are_left_alone() -> None:
    image = {"type": "image_url", "image_url": {"url": "chatqueue-image:" + "0" * 64}}
    body = json.dumps({"model": "gpt-5.1", "messages": [{"role": "user", "content": [image]}]})
    found = changed(body, {"max_tokens": 5}, 1, "a")
    assert found["messages"][0]["content"] == [image]


def test_the_conversation_cannot_be_changed() -> None:
    with pytest.raises(InvalidRequestsError, match=r"messages: cannot be changed"):
        check_changes({"messages": []})
