"""Images by path: each is stored once, whoever stores it when, and is in the body of a claim."""

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from tests.contract.acts import (
    all_at_once,
    claim,
    claim_one,
    count,
    enlist,
    job_ids,
    job_of,
    new_job,
    raw_job,
)
from tests.pictures import GIF, JPEG, PNG, asking_about
from worker.batches import CHUNK, CHUNK_BYTES, Submitted, submit_lines
from worker.errors import InvalidRequestsError
from worker.images import ImageFolder
from worker.jobs.images import Image, image_of, reference
from worker.jobs.options import JobOptions
from worker.jobs.states import State
from worker.models import image
from worker.store import images, submission
from worker.store.engine import Database
from worker.store.submission import NewBatch

NEW = NewBatch("requests.jsonl", "bulk")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, data in (("a.png", PNG), ("same.png", PNG), ("b.jpg", JPEG), ("c.gif", GIF)):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def asked(*urls: str, text: str = "What is it?") -> bytes:
    return json.dumps(asking_about(*urls, text=text)).encode() + b"\n"


def submit(database: Database, folder: Path, *lines: bytes) -> Submitted:
    return submit_lines(database, lines, NEW, images=ImageFolder(folder))


def stored(database: Database) -> dict[str, bytes]:
    with database.read() as connection:
        return {row.media_type: row.data for row in connection.execute(select(image))}


def bodies(database: Database, batch_id: str) -> list[str]:
    return [raw_job(database, job_id)["body"] for job_id in job_ids(database, batch_id)]


def data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


# --- storing --------------------------------------------------------------------------------------


def test_each_image_is_stored_once_and_referred_to(database: Database, pictures: Path) -> None:
    lines = [asked("a.png"), asked("same.png", "b.jpg"), asked("a.png", "https://x/y.png")]
    submitted = submit(database, pictures, *lines)
    submit(database, pictures, lines[0])
    assert stored(database) == {"image/png": PNG, "image/jpeg": JPEG}
    png, jpeg = (reference(image_of(data).sha256) for data in (PNG, JPEG))
    assert bodies(database, submitted.batch_id) == [
        json.dumps(asking_about(png)),
        json.dumps(asking_about(png, jpeg)),
        json.dumps(asking_about(png, "https://x/y.png")),
    ]


def test_what_is_known_of_an_image_is_true(database: Database, pictures: Path) -> None:
    submit(database, pictures, asked("a.png"))
    with database.read() as connection:
        row = connection.execute(select(image)).one()
    assert (row.sha256, row.bytes) == (image_of(PNG).sha256, len(PNG))


def test_the_same_images_may_be_stored_by_many_at_once(database: Database) -> None:
    contents = [image_of(PNG + str(n).encode()) for n in range(40)]

    def put(these: Sequence[Image]) -> None:
        with database.write() as connection:
            images.put(connection, these)

    all_at_once(*[lambda: put(contents), lambda: put(contents[::-1])] * 3)
    assert count(database, "image") == 40


def test_the_same_file_may_be_submitted_by_many_at_once(database: Database, pictures: Path) -> None:
    lines = [asked("a.png"), asked("b.jpg"), asked("c.gif")]
    made = all_at_once(*[lambda: submit(database, pictures, *lines)] * 4)
    assert len({one.batch_id for one in made}) == 4
    assert (count(database, "image"), count(database, "job")) == (3, 12)


def test_a_refused_file_stores_no_job_and_names_every_bad_image(
    database: Database, pictures: Path
) -> None:
    bad = json.dumps(asking_about("../x.png", "a.png", temperature=3)).encode()
    with pytest.raises(InvalidRequestsError) as refusal:
        submit(database, pictures, asked("a.png"), asked("gone.png", "a.png", "no.png"), bad)
    place = "messages.0.content"
    assert [(fault.line, fault.field) for fault in refusal.value.faults] == [
        (2, f"{place}.1.image_url.url"),
        (2, f"{place}.3.image_url.url"),
        (3, "temperature"),
        (3, f"{place}.1.image_url.url"),
    ]
    assert 'must be an image, "gone.png" does not exist in' in str(refusal.value)
    assert (count(database, "job"), count(database, "image")) == (0, 0)


def test_images_of_a_chunk_whose_ids_are_taken_leave_nothing(database: Database) -> None:
    with database.write() as connection:
        batch_id = submission.create_batch(connection, NEW)
    assert submission.add_jobs(database, batch_id, NEW, [new_job(1)]) == {}
    taken = submission.add_jobs(database, batch_id, NEW, [new_job(1)], [image_of(PNG)])
    assert taken == {"line-1": 1}
    assert count(database, "image") == 0


def test_an_image_is_stored_with_the_first_chunk_that_names_it_and_serves_all(
    database: Database, pictures: Path
) -> None:
    lines = [asked("a.png", text=str(n)) for n in range(CHUNK + 2)]
    submitted = submit(database, pictures, *lines, asked("b.jpg"))
    assert submitted.total == CHUNK + 3
    assert stored(database) == {"image/png": PNG, "image/jpeg": JPEG}


def test_large_images_are_not_held_until_a_chunk_is_full(
    database: Database, tmp_path: Path
) -> None:
    for n in range(5):
        with (tmp_path / f"{n}.png").open("wb") as handle:
            handle.write(PNG + str(n).encode())
            handle.truncate(CHUNK_BYTES // 4 + 1)
    lines = [asked(f"{n}.png") for n in range(5)]
    told: list[int] = []
    submit_lines(database, lines, NEW, told.append, ImageFolder(tmp_path))
    assert told == [sum(map(len, lines[:4]))]
    assert count(database, "image") == 5


def test_without_a_folder_a_path_is_a_fault(database: Database) -> None:
    with pytest.raises(InvalidRequestsError, match="only with --images DIR"):
        submit_lines(database, [asked("a.png")], NEW)


# --- claiming -------------------------------------------------------------------------------------


def test_a_claim_brings_the_images_in_the_body_and_leaves_the_row(
    database: Database, pictures: Path
) -> None:
    png = reference(image_of(PNG).sha256)
    lines = [asked("a.png", "b.jpg", "a.png", text=png), asked("https://x/y.png"), asked("c.gif")]
    batch_id = submit(database, pictures, *lines).batch_id
    before = bodies(database, batch_id)
    claimed = claim(database, enlist(database), **{batch_id: 5})
    first, second = data_url("png", PNG), data_url("jpeg", JPEG)
    assert [one.body for one in claimed] == [
        json.dumps(asking_about(first, second, first, text=png)),
        json.dumps(asking_about("https://x/y.png")),
        json.dumps(asking_about(data_url("gif", GIF))),
    ]
    assert bodies(database, batch_id) == before


def test_a_reference_in_a_prompt_is_the_users_own(database: Database, pictures: Path) -> None:
    words = reference(image_of(PNG).sha256)
    line = asked("b.jpg", "a.png", text=words)
    batch_id = submit(database, pictures, line).batch_id
    (claimed,) = claim(database, enlist(database), **{batch_id: 1})
    assert json.loads(claimed.body)["messages"][0]["content"][0]["text"] == words


def test_an_image_that_is_gone_stops_no_claim(database: Database, pictures: Path) -> None:
    batch_id = submit(database, pictures, asked("a.png"), asked("b.jpg")).batch_id
    with database.write() as connection:
        connection.execute(delete(image).where(image.c.media_type == "image/png"))
    claimed = claim(database, enlist(database), **{batch_id: 2})
    assert [one.body for one in claimed] == [
        json.dumps(asking_about(reference(image_of(PNG).sha256))),
        json.dumps(asking_about(data_url("jpeg", JPEG))),
    ]
    assert job_of(database, claimed[0].id).state is State.RUNNING


# --- options --------------------------------------------------------------------------------------


def test_a_jobs_reasks_are_stored_and_claimed(database: Database) -> None:
    head = {"method": "POST", "url": "/v1/chat/completions", "body": asking_about()}
    lines = [
        json.dumps({"custom_id": "own", **head, "chatqueue": {"reasks": 3}}).encode(),
        json.dumps({"custom_id": "none", **head, "chatqueue": {}}).encode(),
        json.dumps(asking_about()).encode(),
    ]
    new = NewBatch("f", "bulk", options=JobOptions(reasks=2))
    batch_id = submit_lines(database, lines, new).batch_id
    ids = job_ids(database, batch_id)
    assert [raw_job(database, job_id)["reasks"] for job_id in ids] == [3, 2, 2]
    claimed = claim_one(database, enlist(database), ids[0])
    assert claimed is not None
    assert (claimed.reasks, claimed.followup) == (3, None)
