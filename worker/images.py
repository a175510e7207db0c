"""Images on the submitter's disk: which files may be sent, and what is in them.

Called where requests are handed in, by those who were told a folder (`ImageFolder`), and for a file
that was named outright (`read_image`). It stores nothing, and opens no file outside of the folder.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from worker.jobs.images import (
    HEAD_BYTES,
    MAX_IMAGE_BYTES,
    Image,
    ImageError,
    image_of,
    media_type,
    reference,
    too_large,
)

REMEMBERED: Final = 65_536
"""So many files are known to have been read; of more, some may be read twice."""


def read_image(path: Path) -> Image:
    """Read an image, whatever its name. Raises ImageError, OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise ImageError("is not a regular file")
    if found.st_size > MAX_IMAGE_BYTES:
        raise too_large(found.st_size)
    with path.open("rb") as handle:
        return image_of(handle.read(MAX_IMAGE_BYTES + 1))  # it may have grown


class ImageFolder:
    """The folder whose images one submission's requests may name by path.

    Holds the images that were read until somebody takes them. Raises OSError where it is no folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve(strict=True)
        if not self._folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
        self._held: dict[str, Image] = {}
        self.held_bytes = 0
        self._digest = lru_cache(maxsize=REMEMBERED)(self._hold)

    def read(self, url: str) -> str:
        """Give the reference of the image that a request names by this path.

        A file is read once, as long as its size and the time of its last change stay the same.
        Raises ImageError for whatever is no image within the folder.
        """
        try:
            path = self._real(url)
            found = path.stat()
            return reference(self._digest(path, found.st_size, found.st_mtime_ns))
        except FileNotFoundError:
            raise ImageError(f"does not exist in {self._folder}") from None
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}") from error
        except ValueError:  # U+0000, or a file: URL that is none
            raise ImageError("is no path") from None

    def take(self) -> list[Image]:
        """Hand over the images that were read since this was asked last, each content once."""
        taken = list(self._held.values())
        self._held.clear()
        self.held_bytes = 0
        return taken

    def fingerprint(self) -> str:
        """Digest the names, sizes and last changes of all images in the folder.

        It reads only their first bytes: a content that was replaced under the same size and time
        goes unseen, and an image that was merely touched counts as another.
        """
        digest = hashlib.sha256()
        for name in sorted(self._files()):
            path = self._folder / name
            if found := _marks(path):
                digest.update(f"{found}\0".encode() + os.fsencode(name) + b"\0")
        return digest.hexdigest()

    def _files(self) -> Iterator[str]:
        for folder, _, names in os.walk(self._folder):
            yield from (os.path.relpath(Path(folder, name), self._folder) for name in names)

    def _real(self, url: str) -> Path:
        path = Path(os.path.realpath(self._folder / _named(url), strict=True))
        if not path.is_relative_to(self._folder):
            raise ImageError(f"is outside of {self._folder}")
        return path

    def _hold(self, path: Path, _size: int, _changed: int) -> str:
        image = read_image(path)
        if image.sha256 not in self._held:
            self._held[image.sha256] = image
            self.held_bytes += len(image.data)
        return image.sha256


def _named(url: str) -> str:
    """Give the path that an image's URL means."""
    if url[:5].lower() != "file:":
        return url
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise ImageError("is on another machine; a file's URL is file:///PATH")
    return url2pathname(parts.path)


def _marks(path: Path) -> tuple[int, int] | None:
    """Give a file's size and last change; None where it is no image, or not to be read.

    A link is taken for one unseen, by its own marks: what it leads to within the folder is there.
    """
    try:
        found = path.lstat()
        if not (stat.S_ISLNK(found.st_mode) or _has_head(path, found)):
            return None
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _has_head(path: Path, found: os.stat_result) -> bool:
    """Whether a regular file begins as an image does."""
    if not stat.S_ISREG(found.st_mode):
        return False
    with path.open("rb") as handle:
        return media_type(handle.read(HEAD_BYTES)) is not None
