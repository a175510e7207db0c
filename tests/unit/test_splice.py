import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pictures import asking_about
from worker.jobs.images import SCHEME, is_local, reference
from worker.jobs.lines import RequestLine, check_single
from worker.jobs.splice import image_urls, references, replaced

SHA = "ab" * 32
FIELD = "messages.0.content.1.image_url.url"


def referring(body: str) -> str:
    """The body as it is stored, where every path leads to one image."""
    found = check_single(body.encode(), read_image=lambda _: reference(SHA))
    assert isinstance(found, RequestLine), found
    return found.body


def test_only_the_literal_of_the_url_is_replaced() -> None:
    text = (
        '{ "model":"m" ,"x": 1.50, "user":"a.png","messages":[{"role":"user","content":\t['
        '{"type":"text","text":"a.png \\"a.png\\" \\u00e9"},\n'
        '{"image_url" : {"detail":"low","url" :  "a.png" },"type":"image_url"}]}]}'
    )
    before, _, after = text.rpartition('"a.png"')
    assert referring(text) == f'{before}"{SCHEME}{SHA}"{after}'


def test_a_url_is_found_however_it_is_escaped() -> None:
    text = json.dumps(asking_about("b.png")).replace("b.png", "\\u0062\\/\\ud83d\\ude42.png")
    text = text.replace('"image_url": {"url"', '"image\\u005furl": {"\\u0075rl"')
    (one,) = image_urls(text)
    assert (one.field, one.url) == (FIELD, "b/🙂.png")
    assert text[one.start : one.end] == '"\\u0062\\/\\ud83d\\ude42.png"'


def test_of_a_key_given_twice_the_last_is_replaced() -> None:
    text = json.dumps(asking_about("b.png"))
    twice = text.replace('{"url"', '{"url": "a.png", "url"')
    assert referring(twice) == twice.replace('"b.png"', f'"{SCHEME}{SHA}"')
    doubled = '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
    doubled += '{"url": "a.png"}}]}], ' + text[1:]
    assert referring(doubled) == doubled.replace('"b.png"', f'"{SCHEME}{SHA}"')


def test_an_image_within_a_part_of_another_kind_is_the_users_own() -> None:
    body = asking_about("https://example.com/a.png")
    body["messages"][0]["content"][0]["image_url"] = {"url": "a.png"}
    text = json.dumps(body)
    assert referring(text) == text


def test_references_are_told_from_the_same_words_in_a_prompt() -> None:
    quoted = reference(SHA)
    (one,) = references(json.dumps(asking_about(quoted, "https://x/a.png", text=quoted)))
    assert (one.field, one.url) == (FIELD, quoted)


def test_several_images_are_replaced_in_one_pass() -> None:
    text = json.dumps(asking_about("a.png", "b.png", "c.png"))
    urls = image_urls(text)
    new = replaced(text, [(urls[0], "data:1"), (urls[2], "data:3")])
    assert new == text.replace("a.png", "data:1").replace("c.png", "data:3")


def test_numbers_of_any_length_are_passed_over() -> None:
    text = json.dumps(asking_about("a.png"))[:-1] + f', "x": {"9" * 4_000}, "y": 1e-7}}'
    assert referring(text).endswith(text[-4_000:])


# --- any body -------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.just("a.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
paths = texts.filter(is_local) | st.just("a.png")
urls = st.sampled_from(["https://example.com/a.png", "data:image/png;base64,AAAA"])


def image_parts(found: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda url, more: {**more, "type": "image_url", "image_url": {**more, "url": url}},
        found,
        st.dictionaries(texts.filter(lambda key: key not in {"detail", "url"}), json_values),
    )


def bodies(found: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    text_parts = st.builds(lambda text: {"type": "text", "text": text}, texts | st.just("a.png"))
    content = texts | st.lists(text_parts | image_parts(found), min_size=1, max_size=4)
    messages = st.lists(
        st.builds(lambda given: {"role": "user", "content": given}, content),
        min_size=1,
        max_size=3,
    )
    return st.builds(
        lambda messages, extra: {"extra": extra, "model": "m", "messages": messages},
        messages,
        json_values,
    )


def written(body: Any, indent: int | None, escaped: bool) -> str:
    return json.dumps(body, indent=indent, ensure_ascii=escaped)


def mapped(body: dict[str, Any]) -> dict[str, Any]:
    """The body with a reference for each path, made of the parsed values."""
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url" and is_local(part["image_url"]["url"]):
                part["image_url"]["url"] = reference(SHA)
    return body


@given(bodies(paths | urls), st.sampled_from([None, 0, 1]), st.booleans())
def test_only_the_urls_that_are_paths_differ_in_any_body(
    body: dict[str, Any], indent: int | None, escaped: bool
) -> None:
    text = written(body, indent, escaped)
    stored = referring(text)
    assert json.loads(stored) == mapped(json.loads(text))
    back = {one.field: text[one.start + 1 : one.end - 1] for one in image_urls(text)}
    assert replaced(stored, [(one, back[one.field]) for one in image_urls(stored)]) == text


@given(bodies(urls), st.sampled_from([None, 0, 1]), st.booleans())
def test_any_body_without_a_path_is_kept_byte_for_byte(
    body: dict[str, Any], indent: int | None, escaped: bool
) -> None:
    text = written(body, indent, escaped)
    assert referring(text) == text


@pytest.mark.parametrize("url", [reference(SHA), "chatqueue-image:", "CHATQUEUE-IMAGE:x"])
def test_a_reference_that_is_not_ours_is_a_fault(url: str) -> None:
    body = json.dumps(asking_about(url)).encode()
    for read_image in (None, reference):
        found = check_single(body, read_image=read_image)
        assert isinstance(found, tuple)
        assert [fault.field for fault in found] == [FIELD]
        assert "an https:// URL or a base64 data URL of an image" in found[0].message
