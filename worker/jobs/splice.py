"""Other image URLs in a request's JSON text, and every other character of it as it came.

Called where a path becomes a reference (`worker.jobs.lines`) and a reference becomes a data URL
(`worker.store.images`). Both take bodies that `worker.jobs.requests` has accepted. Only the
literal of an image's `url` is ever touched, by its position: the same text elsewhere in the body,
say in a prompt, is the user's own.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from worker.jobs.images import SCHEME

# Numbers stay text: nobody asks for them, and Python refuses to read very long ones.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class ImageUrl(NamedTuple):
    """The URL of an image part, and where its literal stands, the quotes included."""

    field: str
    url: str
    start: int
    end: int


def image_urls(body: str) -> list[ImageUrl]:
    """Find the URLs of all image parts, in the order of the text.

    Of a key given twice the last counts, as for the check of the body.
    """
    found: list[ImageUrl] = []
    for field, part in _parts(body):
        places = _values(body, part)
        if "image_url" in places and _read(body, places["type"])[0] == "image_url":
            start = _values(body, places["image_url"])["url"]
            url, end = _read(body, start)
            found.append(ImageUrl(f"{field}.image_url.url", url, start, end))
    return sorted(found, key=lambda one: one.start)


def references(body: str) -> list[ImageUrl]:
    """Find the URLs that stand for stored images."""
    return [one for one in image_urls(body) if one.url.startswith(SCHEME)]


def replaced(body: str, urls: Iterable[tuple[ImageUrl, str]]) -> str:
    """Write other URLs in the place of these, which are in the order of the text.

    The new ones hold nothing that JSON would escape.
    """
    pieces: list[str] = []
    done = 0
    for old, url in urls:
        pieces += (body[done : old.start], f'"{url}"')
        done = old.end
    return "".join((*pieces, body[done:]))


def _parts(body: str) -> Iterator[tuple[str, int]]:
    """Yield each part of each message's content: its field, and where it begins."""
    whole = _values(body, _past_space(body, 0))
    for at, message in _values(body, whole["messages"]).items():
        fields = _values(body, message)
        parts = _values(body, fields["content"]) if "content" in fields else {}
        for index, part in parts.items():
            yield f"messages.{at}.content.{index}", part


def _values(text: str, at: int) -> dict[str | int, int]:
    """Map the keys of the object (or indices of the list) at a place to where the values begin.

    What is neither object nor list has none.
    """
    found: dict[str | int, int] = {}
    if text[at] not in "{[":
        return found
    is_object = text[at] == "{"
    at = _past_space(text, at + 1)
    while text[at] not in "}]":
        key: str | int = len(found)
        if is_object:
            key, at = _read(text, at)
            at = _past_space(text, _past_space(text, at) + 1)
        found[key] = at
        at = _past_space(text, _read(text, at)[1])
        if text[at] == ",":
            at = _past_space(text, at + 1)
    return found


def _read(text: str, at: int) -> tuple[Any, int]:
    """Read the value that begins at a place; return it, and the place behind it."""
    return _DECODER.raw_decode(text, at)


def _past_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
