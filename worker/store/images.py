"""Images that requests refer to: each content stored once, and put into the bodies at the claim.

`put` is called with the jobs that refer to the images, `expand` by the claim. A submission that
fails leaves its images behind, because the jobs of any other may share them: what no job refers to
is found and removed by the retention (`worker.store.retention`).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, case, delete, select

from worker.jobs.images import SCHEME, Image, data_url
from worker.jobs.splice import ImageUrl, references, replaced
from worker.models import image, job
from worker.store.clock import from_now
from worker.store.upsert import insert_or_touch


def put(connection: Connection, images: Iterable[Image]) -> None:
    """Store the images that are not stored yet, whoever else is storing them now.

    One that is there becomes as young as a new one: it must not be removed before the jobs that
    come with it can be seen.
    """
    rows = [
        {
            "sha256": one.sha256,
            "media_type": one.media_type,
            "bytes": len(one.data),
            "data": one.data,
        }
        # in one order, so that two who store the same ones wait for each other in a line
        for one in sorted(images, key=lambda one: one.sha256)
    ]
    insert_or_touch(connection, image, rows, {"created_at": from_now()})


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


# --- what is left over ----------------------------------------------------------------------------

_REFERENCE: Final = re.compile(f'"{SCHEME}([0-9a-f]{{64}})"')


def digests_after(connection: Connection, last: str, limit: int) -> list[str]:
    """List the next stored images by digest, in the order of the digests."""
    chosen = select(image.c.sha256).where(image.c.sha256 > last)
    return list(connection.scalars(chosen.order_by(image.c.sha256).limit(limit)))


def bodies_after(last: str, limit: int) -> Select[Any]:
    """Choose the next jobs by id: each with its body where that may refer to images, else None."""
    body = case((and_(job.c.multimodal, job.c.body.contains(f'"{SCHEME}')), job.c.body)).label(
        "body"
    )
    return select(job.c.id, body).where(job.c.id > last).order_by(job.c.id).limit(limit)


def digests_in(body: str) -> set[str]:
    """Find whatever may be a reference. It may take a prompt's words for one, and misses none."""
    return set(_REFERENCE.findall(body))


def remove(connection: Connection, digests: Sequence[str], older_than_seconds: float) -> int:
    """Remove those of these images that nobody has stored anew meanwhile; return how many."""
    # Locked in the order in which `put` locks them.
    old = (
        select(image.c.sha256)
        .where(image.c.sha256.in_(digests), image.c.created_at < from_now(-older_than_seconds))
        .order_by(image.c.sha256)
        .with_for_update()
    )
    found = connection.scalars(old).all()
    return connection.execute(delete(image).where(image.c.sha256.in_(found))).rowcount
