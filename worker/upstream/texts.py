"""Text from a server, made fit to keep: no key in it, no endless length, nothing SQL cannot hold.

Called by the other modules of `worker.upstream` for every text they hand on. Pure.
"""

import re
from typing import Final

MAX_MESSAGE: Final = 2_000
"""The most characters of an error's message that are kept."""

MAX_BODY: Final = 20_000
"""The most characters of a refused reply that are kept."""

_KEY = re.compile(r"\b(sk-)[\w*.-]{3,}|\b(bearer\s+)[^\s\"',;]+", re.IGNORECASE)
_PAGE = re.compile(r"\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.{0,200}?)</title>", re.IGNORECASE | re.DOTALL)


def storable(text: str) -> str:
    """Replace what a database's text cannot hold by U+FFFD: U+0000, and halves of a pair.

    Two halves that met (an emoji cut between two events of a stream) become whole again.
    """
    text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def bounded(text: str, limit: int) -> str:
    """Take out what looks like a key, then cut to `limit` characters."""
    # A key that straddles the cut must be whole to be seen, so a little more is scrubbed.
    clean = _KEY.sub(lambda found: f"{found[1] or found[2]}…", storable(text[: limit + 1_000]))
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def page_title(text: str) -> str | None:
    """Give the title of a page of HTML (maybe empty); None if the text is no page."""
    if not _PAGE.match(text):
        return None
    found = _TITLE.search(text[:MAX_BODY])
    return " ".join(found[1].split()) if found else ""
