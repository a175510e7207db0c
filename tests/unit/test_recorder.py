import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text
from structlog.testing import capture_logs

from tests.conftest import wait_until
from tests.contract.acts import (
    answer,
    batch_of,
    claim,
    enlist,
    job_of,
    lose,
    outcome_of,
    rescue,
    submit_batch,
)
from worker.execution.outage import Outage
from worker.execution.recorder import GROUP_CHARACTERS, Recorder
from worker.jobs.outcomes import Usage
from worker.jobs.states import State
from worker.store import queries, schema
from worker.store.claims import Claimed
from worker.store.engine import Database


class Bench:
    """A recorder over a real SQLite file, with a batch of claimed jobs."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.outage = Outage("database", quiet_seconds=0)
        self.recorder = Recorder(database, self.outage)
        self.worker_id = enlist(database)

    def claimed(self, jobs: int) -> list[Claimed]:
        batch_id = submit_batch(self.database, jobs)
        return claim(self.database, self.worker_id, **{batch_id: jobs})

    def run(self, act: Callable[[], Awaitable[list[bool]]]) -> list[bool]:
        async def bounded() -> list[bool]:
            return await asyncio.wait_for(act(), 20)

        return asyncio.run(bounded())

    def put_away(self) -> None:
        """Make the database unusable, as one that is away is."""
        with self.database.write() as connection:
            connection.execute(text("ALTER TABLE attempt RENAME TO attempt_away"))

    def bring_back(self) -> None:
        with self.database.write() as connection:
            connection.execute(text("ALTER TABLE attempt_away RENAME TO attempt"))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Database(f"sqlite:///{tmp_path / 'chatqueue.db'}") as database:
        schema.migrate(database)
        bench = Bench(database)
        yield bench
        bench.recorder.close()


def test_outcomes_that_come_together_are_all_recorded_in_few_transactions(bench: Bench) -> None:
    claimed = bench.claimed(300)

    async def act() -> list[bool]:
        return await asyncio.gather(*(bench.recorder.record(outcome_of(one)) for one in claimed))

    commits: list[object] = []
    event.listen(bench.database.engine, "commit", commits.append)
    assert bench.run(act) == [True] * 300
    assert 1 <= len(commits) <= 5
    with bench.database.read() as connection:
        done = queries.get_batch(connection, str(claimed[0].batch_id))
    assert done is not None
    assert done.is_finished
    assert batch_of(bench.database, str(claimed[0].batch_id)).succeeded == 300


def test_large_answers_go_in_more_transactions(bench: Bench) -> None:
    """A transaction holds what memory can hold several times over, not so many of any size."""
    claimed = bench.claimed(8)
    large = answer(body="x" * (GROUP_CHARACTERS // 2))

    async def act() -> list[bool]:
        records = (bench.recorder.record(outcome_of(one, large)) for one in claimed)
        return await asyncio.gather(*records)

    commits: list[object] = []
    event.listen(bench.database.engine, "commit", commits.append)
    assert bench.run(act) == [True] * 8
    assert len(commits) >= 4


def test_whoever_lost_the_job_is_told_so(bench: Bench) -> None:
    kept, lost = bench.claimed(2)
    lose(bench.database, bench.worker_id)
    rescue(bench.database)
    (again, _) = claim(bench.database, enlist(bench.database), **{str(kept.batch_id): 2})

    async def act() -> list[bool]:
        outcomes = (outcome_of(again), outcome_of(lost))
        return await asyncio.gather(*(bench.recorder.record(one) for one in outcomes))

    assert bench.run(act) == [True, False]


def test_an_answer_waits_out_an_outage_of_the_database(bench: Bench) -> None:
    (one,) = bench.claimed(1)

    async def act() -> list[bool]:
        bench.put_away()
        recording = asyncio.create_task(bench.recorder.record(outcome_of(one)))
        what = "the outage is told"
        await asyncio.to_thread(
            wait_until, lambda: any(line["event"] == "lost" for line in lines), what
        )
        assert not recording.done()
        bench.bring_back()
        return [await recording]

    with capture_logs() as lines:
        assert bench.run(act) == [True]
    assert [line["event"] for line in lines] == ["lost", "back"]
    assert job_of(bench.database, one.id).content == "Hi"


def test_an_answer_the_database_refuses_fails_its_job_and_takes_no_other_with_it(
    bench: Bench,
) -> None:
    good, bad, fine = bench.claimed(3)
    secret = "half of a pair: \ud83d"

    async def act() -> list[bool]:
        outcomes = (
            outcome_of(good),
            outcome_of(bad, answer(content=secret)),
            outcome_of(fine),
        )
        return await asyncio.gather(*(bench.recorder.record(one) for one in outcomes))

    with capture_logs() as lines:
        assert bench.run(act) == [True] * 3
    assert [line["job_id"] for line in lines if line["event"] == "record_refused"] == [bad.id]
    assert "half of a pair" not in str(lines)
    states = [job_of(bench.database, one.id).state for one in (good, bad, fine)]
    assert states == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    found = job_of(bench.database, bad.id)
    assert (found.error_code, found.content) == ("answer_unrecordable", None)
    assert found.prompt_tokens is not None, "what it cost is kept"


def test_an_outcome_that_cannot_be_recorded_in_any_form_stops_no_other(bench: Bench) -> None:
    bad, good = bench.claimed(2)

    async def act() -> list[bool]:
        usage = Usage(prompt_tokens=1 << 70)
        outcomes = (outcome_of(bad, answer(usage=usage)), outcome_of(good))
        recording = (bench.recorder.record(one) for one in outcomes)
        return await asyncio.wait_for(asyncio.gather(*recording), 3)

    assert bench.run(act)[1] is True


def test_closing_writes_what_is_left(bench: Bench) -> None:
    claimed = bench.claimed(3)

    async def act() -> list[bool]:
        recording = [asyncio.create_task(bench.recorder.record(outcome_of(one))) for one in claimed]
        await asyncio.sleep(0)
        await asyncio.to_thread(bench.recorder.close)
        return await asyncio.gather(*recording)

    assert bench.run(act) == [True] * 3


def test_during_an_outage_it_gives_up_aloud_when_told_to(bench: Bench) -> None:
    one, another = bench.claimed(2)

    async def act() -> list[bool]:
        bench.put_away()
        recording = asyncio.create_task(bench.recorder.record(outcome_of(one)))
        await asyncio.sleep(0)
        bench.recorder.give_up()
        later = asyncio.create_task(bench.recorder.record(outcome_of(another)))
        taken = [await recording, await later]
        assert await asyncio.to_thread(bench.recorder.close)
        return taken

    with capture_logs() as lines:
        assert bench.run(act) == [False, False]
    lost = [line for line in lines if line["event"] == "answers_lost"]
    assert [line["jobs"] for line in lost] == [[one.id], [another.id]]
    assert {line["log_level"] for line in lost} == {"critical"}
    bench.bring_back()
    assert job_of(bench.database, one.id).state is State.RUNNING
    assert "recorder" not in [thread.name for thread in threading.enumerate()]
