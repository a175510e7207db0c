"""What an image on the submitter's disk is to the queue: its kind, its reference, its data URL.

Pure: called by whoever reads such files (`worker.images`), checks requests that name them, or
stores them. A path in a request becomes a reference, `chatqueue-image:` and the SHA-256 of the
content, when the request is handed in; the reference becomes a data URL when its job is claimed.
"""

import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

SCHEME: Final = "chatqueue-image:"
MAX_IMAGE_BYTES: Final = 20 * 1024 * 1024
HEAD_BYTES: Final = 12
"""So many bytes from the start of a file tell whether it is an image."""

ReadImage = Callable[[str], str]
"""Gives the reference of the image that a request names by its path. Raises ImageError."""

_MAGIC: Final = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/webp", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("image/gif", re.compile(rb"GIF8[79]a")),
)
_NO_PATH: Final = re.compile(
    rf"https?:|data:|{SCHEME}|(?!file:)[a-z][a-z0-9+.-]*://|$", re.IGNORECASE
)


class ImageError(Exception):
    """A file cannot be sent as an image. The message goes on where its name ends: `is empty`."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that may be stored and sent."""

    sha256: str
    media_type: str
    data: bytes


def is_local(url: str) -> bool:
    """Whether an image's URL is a path: relative, absolute or `file:`, and not one of the web."""
    return _NO_PATH.match(url) is None


def media_type(head: bytes) -> str | None:
    """Tell an image's type by its first bytes; None where they are no image's."""
    return next((name for name, magic in _MAGIC if magic.match(head)), None)


def image_of(data: bytes) -> Image:
    """Check a file's content. Raises ImageError."""
    if not data:
        raise ImageError("is empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise too_large(len(data))
    kind = media_type(data)
    if kind is None:
        raise ImageError("is no png, jpeg, webp or gif (its content decides, not its name)")
    return Image(sha256(data).hexdigest(), kind, data)


def too_large(size: int) -> ImageError:
    """Say that a file of this many bytes is too large."""
    return ImageError(f"has {size} bytes, more than {MAX_IMAGE_BYTES} (20 MiB)")


def reference(digest: str) -> str:
    """Name a stored image in a body, by the SHA-256 of its content in hex."""
    return SCHEME + digest


def data_url(kind: str, data: bytes) -> str:
    """Write an image out as the API takes it."""
    return f"data:{kind};base64,{b64encode(data).decode()}"
