"""Purging: what finished long ago goes, in short steps, and nothing else does."""

import itertools
import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from tests.contract.acts import (
    all_at_once,
    answer,
    assert_counters_match_rows,
    batch_of,
    cancel_batch,
    claim,
    claim_singles,
    count,
    enlist,
    failure,
    fill_batch,
    job_ids,
    job_of,
    ledger,
    lose,
    outcome_of,
    put,
    put_off,
    raw_job,
    run_again,
    submit_batch,
    submit_single,
)
from tests.pictures import GIF, JPEG, PNG, asking_about
from worker.batches import result_line, submit_lines
from worker.jobs.images import Image, image_of, reference
from worker.jobs.outcomes import ToolCall
from worker.jobs.states import State
from worker.models import batch, image, job, metadata, tool_call, worker
from worker.store import images, queries, results, retention, submission
from worker.store.engine import Database
from worker.store.retention import Purged
from worker.store.submission import NewBatch

DAY = 86_400.0
CALL = ToolCall(0, "call_1", "f", "{}", arguments_valid=True)
ROWS = ("batch", "job", "attempt", "tool_call", "lane", "file")


def answered(database: Database, jobs: int, *, days: float = 0.0, key: str | None = None) -> str:
    """A batch whose every job has an answer with a tool call, finished so many days ago."""
    lines = [json.dumps(asking_about("https://x/y.png")).encode()] * jobs
    batch_id = submit_lines(database, lines, NewBatch("f.jsonl", "bulk", 0, key)).batch_id
    worker_id = enlist(database)
    called = answer(
        reasoning_content="I think",
        refusal="I will not",
        tool_calls=(CALL,),
    )
    while claimed := claim(database, worker_id, **{batch_id: 1_000}):
        put(database, *(outcome_of(one, called) for one in claimed))
    age(database, batch_id, days)
    return batch_id


def single(database: Database, *, days: float = 0.0) -> str:
    """A single job that failed so many days ago."""
    job_id = submit_single(database, age_seconds=60)
    (claimed,) = claim_singles(database, enlist(database), 1)
    put(database, outcome_of(claimed, failure(message="it said: secret")))
    with database.write() as connection:
        when = datetime.now(UTC) - timedelta(days=days)
        connection.execute(update(job).where(job.c.id == job_id).values(finished_at=when))
    return job_id


def age(database: Database, batch_id: str, days: float) -> None:
    when = datetime.now(UTC) - timedelta(days=days)
    with database.write() as connection:
        connection.execute(update(batch).where(batch.c.id == batch_id).values(finished_at=when))


def counts(database: Database, *tables: str) -> dict[str, int]:
    return {name: count(database, name) for name in tables or ROWS}


def snapshot(database: Database) -> dict[str, list[Any]]:
    with database.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for table in metadata.sorted_tables
        }


# --- whole rows -----------------------------------------------------------------------------------


def test_an_old_batch_goes_with_everything_that_hangs_on_it(database: Database) -> None:
    answered(database, 3, days=31)
    purged = retention.purge(database, 30 * DAY)
    assert purged == Purged(batches=1, jobs=3, calls=3)
    assert counts(database) == dict.fromkeys(ROWS, 0)


def test_what_is_young_or_unfinished_is_not_touched(database: Database) -> None:
    answered(database, 2, days=29)
    single(database, days=29)
    submit_batch(database, 2)
    submit_single(database)
    half = submit_batch(database, 2)
    put(database, outcome_of(claim(database, enlist(database), **{half: 1})[0]))
    put_off(database, claim(database, enlist(database), **{half: 1})[0], 3_600)
    with database.write() as connection:  # open for a very long time
        connection.execute(update(batch).values(created_at=datetime.now(UTC) - timedelta(days=400)))
    before = snapshot(database)
    for content_only in (False, True):
        assert retention.purge(database, 30 * DAY, content_only=content_only) == Purged()
    assert snapshot(database) == before


def test_a_job_that_finished_long_ago_stays_as_long_as_its_batch_is_open(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    put(database, outcome_of(claim(database, enlist(database), **{batch_id: 1})[0]))
    with database.write() as connection:
        past = datetime.now(UTC) - timedelta(days=99)
        connection.execute(
            update(job).where(job.c.finished_at.is_not(None)).values(finished_at=past)
        )
    assert retention.purge(database, DAY) == Purged()
    assert retention.purge(database, DAY, content_only=True) == Purged()
    assert_counters_match_rows(database, batch_id)


def test_a_submission_under_way_keeps_its_jobs_however_old(database: Database) -> None:
    batch_id = fill_batch(database, 3)
    with database.write() as connection:
        connection.execute(update(batch).values(created_at=datetime.now(UTC) - timedelta(days=400)))
    assert retention.purge(database, 0) == Purged()
    assert len(job_ids(database, batch_id)) == 3


def test_single_jobs_go_one_by_one(database: Database) -> None:
    old, young = single(database, days=31), single(database)
    assert retention.purge(database, 30 * DAY) == Purged(jobs=1, calls=1)
    assert job_of(database, young).state is State.FAILED
    assert raw_ids(database) == {young}
    assert old != young


def raw_ids(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(select(job.c.id)))


def test_old_single_jobs_are_found_behind_pages_of_young_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP", 2)
    kept = [single(database) for _ in range(3)]
    gone = [single(database, days=31) for _ in range(3)]
    kept += [single(database)]
    assert retention.purge(database, 30 * DAY).jobs == len(gone)
    assert raw_ids(database) == set(kept)


def test_a_purged_file_can_be_submitted_anew_under_its_key(database: Database) -> None:
    first = answered(database, 1, days=31, key="run:x")
    retention.purge(database, 30 * DAY)
    again = answered(database, 1, key="run:x")
    assert first != again
    assert batch_of(database, again).succeeded == 1


def test_a_step_is_a_thousand_jobs_and_the_sum_is_told_after_each(database: Database) -> None:
    answered(database, 2_500, days=31)
    told: list[Purged] = []
    retention.purge(database, 30 * DAY, on_step=told.append)
    assert [one.jobs for one in told[:3]] == [1_000, 2_000, 2_500]
    assert [one.batches for one in told[:3]] == [0, 0, 1]


class _Killed(BaseException):
    """As good as SIGKILL: what was committed stays, and nothing else is done."""


def killed_after(steps: int) -> Any:
    left = iter(range(steps - 1))

    def on_step(_: Purged) -> None:
        if next(left, None) is None:
            raise _Killed

    return on_step


def test_a_purge_that_was_killed_shows_nothing_half_and_the_next_one_goes_on(
    database: Database,
) -> None:
    batch_id = answered(database, 2_500, days=31)
    kept = answered(database, 2)
    with pytest.raises(_Killed):
        retention.purge(database, 30 * DAY, on_step=killed_after(1))
    (left, *_) = job_ids(database, batch_id)
    assert len(job_ids(database, batch_id)) == 1_500
    with database.read() as connection:
        assert queries.get_batch(connection, batch_id) is None
        assert queries.get_job(connection, left) is None
        assert queries.count_states(connection) == {State.SUCCEEDED: 2}
        assert {one.batch_id for one in queries.list_jobs(connection, queries.JobFilter(), 99)} == {
            kept
        }
    assert retention.purge(database, 30 * DAY) == Purged(batches=1, jobs=1_500, calls=1_500)
    assert counts(database, "batch", "job") == {"batch": 1, "job": 2}


def test_what_a_killed_purge_left_is_cleaned_up_by_workers_too(database: Database) -> None:
    batch_id = answered(database, 1_500, days=31)
    with pytest.raises(_Killed):
        retention.purge(database, 30 * DAY, on_step=killed_after(1))
    with database.write() as connection:
        connection.execute(update(batch).values(created_at=datetime.now(UTC) - timedelta(days=31)))
    with database.read() as connection:
        assert submission.abandoned_batches(connection) == [batch_id]
    submission.drop_batch(database, batch_id)
    assert counts(database) == dict.fromkeys(ROWS, 0)


def test_many_small_batches_go_a_page_after_the_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP", 2)
    for _ in range(5):
        answered(database, 1, days=31)
    assert retention.purge(database, 30 * DAY).batches == 5


def test_two_purges_at_once_remove_everything_once(database: Database) -> None:
    for _ in range(3):
        answered(database, 1_200, days=31)
    both = all_at_once(*[lambda: retention.purge(database, 30 * DAY)] * 2)
    assert sum((one for one in both), Purged()) == Purged(batches=3, jobs=3_600, calls=3_600)
    assert counts(database) == dict.fromkeys(ROWS, 0)


# --- contents alone -------------------------------------------------------------------------------


def test_contents_go_and_rows_counts_and_the_ledger_stay(database: Database) -> None:
    batch_id = answered(database, 2, days=31)
    failed = single(database, days=31)
    before, calls = batch_of(database, batch_id), ledger(database, failed)
    rows = counts(database)
    purged = retention.purge(database, 30 * DAY, content_only=True)
    assert purged == Purged(batches=1, jobs=3)
    assert counts(database) == rows
    assert batch_of(database, batch_id) == before
    for job_id in (failed, *job_ids(database, batch_id)):
        row = raw_job(database, job_id)
        said = ("content", "reasoning_content", "refusal", "response", "followup", "error_message")
        assert [row[name] for name in said] == [None] * len(said)
        assert row["body"] == ""
    assert ledger(database, failed) == [{**calls[0], "error_message": None}]
    with database.read() as connection:
        assert set(connection.scalars(select(tool_call.c.arguments))) == {""}
        assert set(connection.scalars(select(tool_call.c.name))) == {"f"}
    assert job_of(database, failed).is_emptied
    assert job_of(database, job_ids(database, batch_id)[0]).total_tokens == 18


def test_no_word_of_a_purged_job_is_left_in_any_row(database: Database) -> None:
    word = "a-word-of-the-user"
    body = json.dumps(asking_about("https://x/y.png", text=word))
    batch_id = submit_lines(database, [body.encode()] * 2, NewBatch("f", "bulk")).batch_id
    first, second = claim(database, enlist(database), **{batch_id: 2})
    said = answer(content=word, body=word, tool_calls=(replace(CALL, arguments=word),))
    put(database, outcome_of(first, said), outcome_of(second, failure(message=word)))
    age(database, batch_id, 31)
    assert word in str(snapshot(database))
    retention.purge(database, 30 * DAY, content_only=True)
    assert word not in str(snapshot(database))


def test_contents_that_are_gone_are_not_looked_for_again(database: Database) -> None:
    answered(database, 3, days=31)
    single(database, days=31)
    retention.purge(database, 30 * DAY, content_only=True)
    told: list[Purged] = []
    retention.purge(database, 30 * DAY, content_only=True, on_step=told.append)
    assert told == [Purged()]  # the workers' step alone


def test_a_purge_of_contents_that_was_killed_goes_on(database: Database) -> None:
    batch_id = answered(database, 2_500, days=31)
    with pytest.raises(_Killed):
        retention.purge(database, 30 * DAY, content_only=True, on_step=killed_after(1))
    with database.read() as connection:
        assert retention.is_emptied(connection, batch_id)
    assert retention.purge(database, 30 * DAY, content_only=True).jobs == 1_500


def test_what_was_emptied_can_be_removed_whole_later(database: Database) -> None:
    answered(database, 2, days=31)
    retention.purge(database, 30 * DAY, content_only=True)
    assert retention.purge(database, 30 * DAY) == Purged(batches=1, jobs=2, calls=2)


def test_results_of_emptied_jobs_are_errors_that_say_so(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    first, second = claim(database, enlist(database), **{batch_id: 2})
    put(database, outcome_of(first), outcome_of(second, failure()))
    cancel_batch(database, batch_id)
    age(database, batch_id, 31)
    retention.purge(database, 30 * DAY, content_only=True)
    lines = [json.loads(result_line(one)) for one in results.results(database, batch_id)]
    assert [one["custom_id"] for one in lines] == ["line-1", "line-2", "line-3"]
    assert [one["response"] for one in lines] == [None] * 3
    assert [one["error"]["code"] for one in lines] == [
        *["content_purged"] * 2,
        "batch_cancelled",  # there was nothing more to say of it
    ]
    endings = [one["error"]["message"].rpartition("it had ")[2] for one in lines[:2]]
    assert endings == ["succeeded", "failed with server_error"]


def test_a_batch_without_jobs_is_never_an_emptied_one(database: Database) -> None:
    batch_id = submit_batch(database, 0)
    age(database, batch_id, 31)
    assert retention.purge(database, 30 * DAY, content_only=True) == Purged()
    with database.read() as connection:
        assert not retention.is_emptied(connection, batch_id)


# --- images ---------------------------------------------------------------------------------------


def asking(database: Database, *pictures: Image, days: float | None = None) -> str:
    """A batch of one job that asks about these images; cancelled so many days ago, or open."""
    body = json.dumps(asking_about(*(reference(one.sha256) for one in pictures)))
    new = NewBatch("f", "bulk")
    with database.write() as connection:
        batch_id = submission.create_batch(connection, new)
    one = submission.NewJob(1, "1", body, "gpt-5.1", multimodal=True, stream=False)
    submission.add_jobs(database, batch_id, new, [one], pictures)
    with database.write() as connection:
        submission.open_batch(connection, batch_id, 1, None, None)
    if days is not None:
        cancel_batch(database, batch_id)
        age(database, batch_id, days)
    return batch_id


def age_images(database: Database, hours: float) -> None:
    with database.write() as connection:
        when = datetime.now(UTC) - timedelta(hours=hours)
        connection.execute(update(image).values(created_at=when))


def kinds(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(select(image.c.media_type)))


@pytest.mark.parametrize("content_only", [False, True])
def test_images_go_with_the_last_job_that_refers_to_them(
    database: Database, *, content_only: bool
) -> None:
    png, jpeg, gif = map(image_of, (PNG, JPEG, GIF))
    asking(database, png, jpeg, days=31)
    asking(database, jpeg, gif)
    age_images(database, 24)
    purged = retention.purge(database, 30 * DAY, content_only=content_only)
    assert purged.images == 1
    assert kinds(database) == {"image/jpeg", "image/gif"}


def test_images_that_a_refused_submission_left_go_once_they_are_old_enough(
    database: Database,
) -> None:
    with database.write() as connection:
        images.put(connection, [image_of(PNG)])
    assert retention.purge(database, 0).images == 0
    age_images(database, 6.5)  # a submission may take six hours
    assert retention.purge(database, 0).images == 0
    age_images(database, 7.5)
    assert retention.purge(database, 0).images == 1


def test_images_of_a_submission_under_way_stay(database: Database) -> None:
    batch_id = asking(database, image_of(PNG))
    with database.write() as connection:
        connection.execute(update(batch).values(state="validating"))
    age_images(database, 24)
    assert retention.purge(database, 0).images == 0
    assert len(job_ids(database, batch_id)) == 1


def test_an_image_that_is_handed_in_again_during_a_purge_stays(database: Database) -> None:
    with database.write() as connection:
        images.put(connection, [image_of(PNG)])
    asking(database, image_of(GIF))
    age_images(database, 24)

    def hand_in(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        # The bodies were looked through, and no job referred to it.
        if "CASE WHEN" in statement and "PNG" not in done:
            done.add("PNG")
            all_at_once(lambda: asking(database, image_of(PNG)))

    done: set[str] = set()
    event.listen(database.engine, "after_cursor_execute", hand_in)
    try:
        assert retention.purge(database, 0).images == 0
    finally:
        event.remove(database.engine, "after_cursor_execute", hand_in)
    assert done
    assert kinds(database) == {"image/png", "image/gif"}


def test_a_prompt_that_quotes_a_reference_only_keeps_an_image_longer(database: Database) -> None:
    quoted = json.dumps(asking_about("https://x/y.png", text=reference(image_of(PNG).sha256)))
    submit_lines(database, [quoted.encode()], NewBatch("f", "bulk"))
    with database.write() as connection:
        images.put(connection, [image_of(PNG)])
    age_images(database, 24)
    assert retention.purge(database, 0).images == 0


def test_images_are_removed_some_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as connection:
        images.put(connection, [image_of(PNG + bytes([n])) for n in range(120)])
    age_images(database, 24)
    monkeypatch.setattr(retention, "STEP", 50)
    told: list[Purged] = []
    retention.purge(database, 0, on_step=told.append)
    assert [one.images for one in told] == [50, 100, 120, 120]


# --- workers --------------------------------------------------------------------------------------


def test_rows_of_workers_that_ended_long_ago_go_unless_they_hold_something(
    database: Database,
) -> None:
    alive, young, ended, holding = (enlist(database) for _ in range(4))
    batch_id = submit_batch(database, 1)
    claim(database, holding, **{batch_id: 1})
    lose(database, young)  # it may only have been suspended
    with database.write() as connection:
        past = datetime.now(UTC) - timedelta(days=2)
        connection.execute(
            update(worker).where(worker.c.id.in_([ended, holding])).values(lease_until=past)
        )
    assert retention.purge(database, 0) == Purged(workers=1)
    with database.read() as connection:
        assert set(connection.scalars(select(worker.c.id))) == {alive, young, holding}


# --- beside running work --------------------------------------------------------------------------


@pytest.mark.parametrize("content_only", [False, True])
def test_claims_and_records_go_on_beside_a_purge_of_twenty_thousand_jobs(
    database: Database, *, content_only: bool
) -> None:
    old = submit_batch(database, 20_000)
    cancel_batch(database, old)
    age(database, old, 31)
    work = submit_batch(database, 5_000)
    over = threading.Event()
    done: list[float] = []

    def run() -> None:
        worker_id = enlist(database)
        while not over.is_set() and (claimed := claim(database, worker_id, **{work: 10})):
            began = time.monotonic()
            put(database, *(outcome_of(one) for one in claimed))
            done.append(time.monotonic() - began)

    def purge() -> Purged:
        try:
            return retention.purge(
                database, 30 * DAY, content_only=content_only, on_step=steps.append
            )
        finally:
            over.set()

    steps: list[Purged] = []
    _, purged = all_at_once(run, purge)
    assert purged is not None
    assert purged.jobs == 20_000
    sizes = [b.jobs - a.jobs for a, b in itertools.pairwise([Purged(), *steps])]
    assert max(sizes) <= retention.STEP
    assert len(done) >= 5, "work stood still while the purge ran"
    assert_counters_match_rows(database, work)
    assert batch_of(database, work).succeeded == 10 * len(done)


def test_a_retry_between_two_steps_gets_what_is_left_and_the_purge_leaves_it_alone(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 2)
    put(
        database,
        *(outcome_of(one, failure()) for one in claim(database, enlist(database), **{batch_id: 2})),
    )
    age(database, batch_id, 31)
    one = retention._Purge(database, 30 * DAY)
    pages = one._batches(one._old_batch)
    assert list(next(pages)) == [batch_id]  # found, and then a person is quicker
    assert run_again(database, batch_id) == 2
    assert sum(one._empty(batch_id), Purged()).jobs == 0
    assert list(one._drop(batch_id)) == [Purged()]
    assert len(job_ids(database, batch_id)) == 2
