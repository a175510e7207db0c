import pytest

from tests.pictures import GIF, JPEG, PNG, WEBP
from worker.jobs.images import (
    HEAD_BYTES,
    MAX_IMAGE_BYTES,
    ImageError,
    data_url,
    image_of,
    is_local,
    media_type,
)
from worker.jobs.schema import IMAGE_TYPES

KINDS = {"image/png": PNG, "image/jpeg": JPEG, "image/webp": WEBP, "image/gif": GIF}


@pytest.mark.parametrize(
    "url",
    [
        "a.png",
        "pics/a.png",
        "./a",
        "../a",
        "/a/b.png",
        "file:///a.png",
        "FILE:a",
        "a:b",
        "~/a",
        "é",
    ],
)
def test_what_is_no_url_of_the_web_is_a_path(url: str) -> None:
    assert is_local(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://x/a.png", "HTTPS://x", "http://x/a.png", "http:a", "data:image/png;base64,AA"),
        *("DATA:x", "chatqueue-image:00", "ChatQueue-Image:00", "s3://bucket/a.png", "ftp://a", ""),
    ],
)
def test_a_url_of_the_web_is_no_path(url: str) -> None:
    assert not is_local(url)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_known_by_its_first_bytes(kind: str) -> None:
    assert media_type(KINDS[kind][:HEAD_BYTES]) == kind
    assert image_of(KINDS[kind]).media_type == kind


def test_every_kind_of_image_that_the_api_takes_is_known() -> None:
    assert {f"image/{kind}" for kind in IMAGE_TYPES} == set(KINDS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<svg/>", "is no png, jpeg, webp or gif"),
        (b"RIFF1234WAVE", "is no png"),
        (b" " + PNG, "is no png"),
        (PNG.ljust(MAX_IMAGE_BYTES + 1), "has 20971521 bytes, more than 20971520"),
    ],
)
def test_what_cannot_be_sent_says_why(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image_of(data)


def test_the_largest_image_is_taken() -> None:
    assert len(image_of(PNG.ljust(MAX_IMAGE_BYTES)).data) == MAX_IMAGE_BYTES


def test_a_data_url_is_what_the_api_takes() -> None:
    assert data_url("image/png", b"\x00\xff") == "data:image/png;base64,AP8="
