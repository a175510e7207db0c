import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery._state import get_current_app
from sqlalchemy import select

from tests.pictures import JPEG, PNG, asking_about
from worker import Client, InvalidRequestsError, JobOptions, NotFoundError, State
from worker.errors import SchemaError, WaitTimeoutError
from worker.jobs.images import image_of, reference
from worker.jobs.states import BatchState
from worker.models import image as image_table
from worker.models import job as job_table
from worker.settings import Settings


def body(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.1", "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture
def client() -> Iterator[Client]:
    """A client whose jobs wait: there is no broker."""
    with Client() as opened:
        yield opened


def line(custom_id: str) -> dict[str, Any]:
    head = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return {**head, "body": body()}


def stored(client: Client) -> list[str]:
    with client.database.read() as connection:
        return list(connection.scalars(select(job_table.c.body).order_by(job_table.c.id)))


def test_a_submitted_job_is_stored_though_there_is_no_broker(client: Client) -> None:
    job = client.submit(body())
    assert (job.state, job.batch_id, job.model, job.attempts) == (
        State.QUEUED,
        None,
        "gpt-5.1",
        0,
    )
    assert client.get(job.id) == job
    assert client.attempts(job.id) == []


@pytest.mark.parametrize("kind", [str, bytes])
def test_json_text_is_stored_verbatim(client: Client, kind: type[Any]) -> None:
    text = '{ "messages":[{"content":"\\u00e9 ß","role":"user"}] , "model":"m","x":1.0}'
    client.submit(text if kind is str else text.encode())
    assert stored(client) == [text]


def test_an_object_is_stored_as_its_json(client: Client) -> None:
    client.submit(body("Grüße 🙂"))
    assert json.loads(stored(client)[0]) == body("Grüße 🙂")


def test_a_bad_request_is_refused_with_every_fault_and_not_stored(client: Client) -> None:
    with pytest.raises(InvalidRequestsError) as caught:
        client.submit({"model": "", "messages": [], "temperature": 3})
    assert {fault.field for fault in caught.value.faults} >= {"model", "messages", "temperature"}
    assert stored(client) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', b"\xff"])
def test_what_is_no_json_object_is_refused(client: Client, text: str | bytes) -> None:
    with pytest.raises(InvalidRequestsError):
        client.submit(text)
    assert stored(client) == []


def test_an_image_is_named_by_its_path_in_a_folder(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PNG)
    (tmp_path / "b").write_bytes(JPEG)
    client.submit(asking_about("a"), images=tmp_path)
    client.submit_many([asking_about("b"), asking_about("a")], images=tmp_path)
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(asking_about(f"{tmp_path}/b")))
    client.submit_file(path, images=tmp_path)
    png, jpeg = (reference(image_of(data).sha256) for data in (PNG, JPEG))
    assert [json.loads(text) for text in stored(client)] == [
        asking_about(one) for one in (png, jpeg, png, jpeg)
    ]
    with client.database.read() as connection:
        assert set(connection.scalars(select(image_table.c.data))) == {PNG, JPEG}


def test_a_path_without_a_folder_or_without_an_image_is_refused(
    client: Client, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestsError, match="--images DIR"):
        client.submit(asking_about("a"))
    with pytest.raises(InvalidRequestsError, match='must be an image, "a" does not'):
        client.submit(asking_about("a"), images=tmp_path)
    with pytest.raises(FileNotFoundError):
        client.submit(body(), images=tmp_path / "gone")
    assert stored(client) == []


def test_options_are_stored_with_the_jobs(client: Client, tmp_path: Path) -> None:
    options = JobOptions(reasks=4)
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({**line("a"), "chatqueue": {"reasks": 1}}))
    client.submit(body(), options=options)
    client.submit_many([body(), {**line("a"), "chatqueue": {"reasks": 0}}], options=options)
    client.submit_file(path, options=options)
    with client.database.read() as connection:
        reasks = select(job_table.c.reasks).order_by(job_table.c.id)
        assert list(connection.scalars(reasks)) == [4, 4, 0, 1]


def test_many_requests_are_one_batch_in_their_order(client: Client) -> None:
    batch = client.submit_many((body(f"number {n}") for n in range(2_500)), name="many")
    assert (batch.name, batch.total, batch.state) == ("many", 2_500, BatchState.IN_PROGRESS)
    assert client.count(batch.id) == {State.QUEUED: 2_500}
    assert [json.loads(text)["messages"][0]["content"] for text in stored(client)] == [
        f"number {n}" for n in range(2_500)
    ]


def test_many_requests_are_all_refused_for_one(client: Client) -> None:
    bodies = [body() for _ in range(2_500)]
    with pytest.raises(InvalidRequestsError) as caught:
        client.submit_many([*bodies, body(n=0), body(top_p=2)])
    assert [fault.line for fault in caught.value.faults] == [2_501, 2_502]
    assert stored(client) == []
    assert client.batches() == []


def test_whole_lines_bring_their_ids(client: Client) -> None:
    lines = [line(f"id-{n}") for n in range(3)]
    batch = client.submit_many(lines)
    assert [job.custom_id for job in client.jobs(batch_id=batch.id)] == ["id-2", "id-1", "id-0"]


def test_an_id_that_comes_twice_far_apart_is_found(client: Client) -> None:
    lines = [line(f"id-{n % 2_100}") for n in range(2_101)]
    with pytest.raises(InvalidRequestsError, match="line 2101: custom_id: 'id-0' is used on"):
        client.submit_many(lines)
    assert stored(client) == []


def test_the_same_key_stores_nothing_again(client: Client) -> None:
    first = client.submit_many([body()], key="key")
    assert client.submit_many([body(), body()], key="key").id == first.id
    assert len(stored(client)) == 1


def test_a_file_is_a_batch_of_its_name(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{json.dumps(body())}\n\n{json.dumps(body(model='unheard-of'))}\n")
    submitted = client.submit_file(path)
    assert (submitted.total, submitted.existed) == (2, False)
    assert client.batch(submitted.batch_id).name == "in.jsonl"
    assert [(one.first.line, one.count) for one in submitted.warnings] == [(3, 1)]


@pytest.mark.parametrize("name", ["get", "batch", "cancel", "retry", "wait", "wait_batch"])
def test_what_is_unknown_is_not_found(client: Client, name: str) -> None:
    with pytest.raises(NotFoundError, match="batch_1"):
        getattr(client, name)("batch_1")


def test_a_wait_ends_when_its_time_is_over_and_the_work_goes_on(client: Client) -> None:
    job = client.submit(body())
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=job.id):
        client.wait(job.id, 0.05)
    assert time.monotonic() - began < 5
    assert client.get(job.id).state is State.QUEUED


def test_a_wait_ends_with_the_job_however_that_ends(client: Client) -> None:
    job = client.submit(body())
    canceller = threading.Timer(0.05, client.cancel, [job.id])
    canceller.start()
    assert client.wait(job.id, 10).state is State.CANCELLED
    canceller.join()


def test_cancelling_counts_what_it_ended_and_results_are_what_is_finished(client: Client) -> None:
    batch = client.submit_many([body() for _ in range(3)])
    assert list(client.results(batch.id)) == []
    last, *_ = client.jobs(batch_id=batch.id)
    assert client.cancel(last.id) == 1
    assert [job.id for job in client.results(batch.id)] == [last.id]
    assert client.cancel(batch.id) == 2
    assert client.cancel(batch.id) == 0
    assert client.wait_batch(batch.id, 1).state is BatchState.CANCELLED
    assert [job.line for job in client.results(batch.id)] == [1, 2, 3]


def test_a_retry_runs_only_what_failed(client: Client) -> None:
    batch = client.submit_many([body()])
    client.cancel(batch.id)
    assert client.retry(batch.id) == 0


def test_jobs_are_listed_newest_first_and_chosen_by_state(client: Client) -> None:
    jobs = [client.submit(body(str(n))) for n in range(5)]
    client.cancel(jobs[2].id)
    assert [job.id for job in client.jobs(limit=2)] == [jobs[4].id, jobs[3].id]
    assert [job.id for job in client.jobs(state=State.CANCELLED)] == [jobs[2].id]


def test_a_client_may_be_used_from_many_threads(client: Client) -> None:
    threads = [
        threading.Thread(target=lambda: [client.submit(body()) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored(client)) == 40


def test_a_client_leaves_the_programs_own_celery_alone() -> None:
    own = celery.Celery("own", set_as_current=False)
    before = get_current_app()
    own.set_current()
    try:
        with Client(Settings(broker_url="redis://127.0.0.1:1/0")):
            assert get_current_app() is own
    finally:
        before.set_current()


def test_a_broker_that_is_away_fails_no_submission() -> None:
    with Client(Settings(broker_url="redis://127.0.0.1:1/0")) as client:
        began = time.monotonic()
        job = client.submit(body())
        batch = client.submit_many([body()])
        assert time.monotonic() - began < 5
        assert client.get(job.id).state is State.QUEUED
        assert client.batch(batch.id).total == 1


def test_a_database_of_ones_own_is_never_migrated_unasked(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'own.db'}")
    with pytest.raises(SchemaError, match="chatqueue migrate"):
        Client(settings)
