"""Images that requests refer to: each content stored once, and put into the bodies at the claim.

`put` is called with the jobs that refer to the images, `expand` by the claim. Nothing here removes
an image: the jobs of any submission may share it, so one that failed leaves its images behind, and
clearing out those that no job refers to is a retention's business.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from worker.jobs.images import SCHEME, Image, data_url
from worker.jobs.splice import ImageUrl, references, replaced
from worker.models import image
from worker.store.upsert import insert_missing


def put(connection: Connection, images: Iterable[Image]) -> None:
    """Store the images that are not stored yet, whoever else is storing them now."""
    now = datetime.now(UTC)
    rows = [
        {
            "sha256": one.sha256,
            "media_type": one.media_type,
            "bytes": len(one.data),
            "data": one.data,
            "created_at": now,
        }
        # in one order, so that two who store the same ones wait for each other in a line
        for one in sorted(images, key=lambda one: one.sha256)
    ]
    insert_missing(connection, image, rows)


def refers(body: str) -> bool:
    """Whether a stored body may refer to images; a cheap look that misses none."""
    return f'"{SCHEME}' in body


def expand(connection: Connection, bodies: Sequence[str]) -> list[str]:
    """Put data URLs in the place of references, reading each image once.

    A reference without an image stays, and the API refuses it: one job fails, and no claim.
    """
    found = [references(body) for body in bodies]
    urls = _data_urls(connection, {_digest(one) for places in found for one in places})
    return [
        replaced(body, [(one, urls[_digest(one)]) for one in places if _digest(one) in urls])
        for body, places in zip(bodies, found, strict=True)
    ]


def _digest(place: ImageUrl) -> str:
    return place.url.removeprefix(SCHEME)


def _data_urls(connection: Connection, digests: set[str]) -> dict[str, str]:
    chosen = select(image.c.sha256, image.c.media_type, image.c.data).where(
        image.c.sha256.in_(sorted(digests))
    )
    return {row.sha256: data_url(row.media_type, row.data) for row in connection.execute(chosen)}
