"""Workers that do at the same time what workers do, on one database, and what must come of it."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from sqlalchemy import func, select

from tests.contract.acts import (
    USAGE,
    all_at_once,
    answer,
    assert_counters_match_rows,
    batch_of,
    cancel_job,
    claim,
    enlist,
    failure,
    give_back,
    job_ids,
    lose,
    outcome_of,
    put,
    rescue,
    submit_batch,
)
from worker.errors import DatabaseError
from worker.jobs.states import TERMINAL, AttemptState, State
from worker.models import attempt, job
from worker.store import leases, records
from worker.store.claims import Claimed
from worker.store.engine import Database
from worker.store.lost import forget_calls
from worker.store.records import Record

WORKERS = 5
JOBS = 60
TURNS = 60
NEVER_POISON = 10_000

T = TypeVar("T")


@dataclass
class Hand:
    """One worker: what it holds, and what it was told by the database that it did."""

    database: Database
    batches: dict[str, list[str]]
    rng: random.Random
    worker_id: str = ""
    held: list[Claimed] = field(default_factory=list)
    claimed: list[tuple[str, int]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    cancelled: int = 0
    answers: int = 0
    refusals: list[str] = field(default_factory=list)

    def work(self) -> None:
        """Take so many turns, then leave everything as a worker that dies would."""
        self.worker_id = enlist(self.database)
        acts = (self.claim, self.record, self.give_back, self.sweep, self.let_go, self.falter)
        chances = (8, 8, 2, 3, 2, 1)
        for _ in range(TURNS):
            (act,) = self.rng.choices(acts, chances)
            self.surely(act)
            if self.rng.random() < 0.1:
                self.surely(self.cancel)
            time.sleep(self.rng.random() * 0.004)  # the delays of real work, so that turns mix
        lose(self.database, self.worker_id)

    def surely(self, act: Callable[[], T]) -> T:
        """Do as the worker does: what the database could not do now is tried again."""
        while True:
            try:
                return act()
            except DatabaseError as error:
                self.refusals.append(str(error))

    def claim(self) -> None:
        batch_id = self.rng.choice(list(self.batches))
        taken = claim(self.database, self.worker_id, **{batch_id: self.rng.randint(1, 6)})
        self.held += taken
        self.claimed += [(one.id, one.fence) for one in taken]

    def some(self) -> list[Claimed]:
        return self.rng.sample(self.held, self.rng.randint(0, min(6, len(self.held))))

    def record(self) -> None:
        chosen = self.some()
        rows = [self._outcome(one) for one in chosen]
        taken = put(self.database, *rows).job_ids
        # It may hold a job twice, under an old fence and a new one: the new one it was, then.
        newest = {row.job_id: row for row in sorted(rows, key=lambda row: row.fence)}
        live = [newest[job_id] for job_id in taken]
        self.finished += [row.job_id for row in live if row.state in TERMINAL]
        self.answers += sum(row.state is State.SUCCEEDED for row in live)
        self._drop(chosen)

    def _outcome(self, one: Claimed) -> Record:
        chance = self.rng.random()
        if chance < 0.5:
            return outcome_of(one, answer())
        if chance < 0.6:
            return outcome_of(one, failure())
        return outcome_of(one, failure(), State.WAITING, delay_seconds=0.0, burns_attempt=False)

    def give_back(self) -> None:
        chosen = self.some()
        if chosen:
            give_back(self.database, self.worker_id, _keys(chosen))
            self._drop(chosen)

    def sweep(self) -> None:
        """Renew the lease, take over, note what is seen in flight: as the runtime does."""
        with self.database.write() as connection:
            leases.heartbeat(connection, self.worker_id, 60.0)
        rescue(self.database, NEVER_POISON)
        if self.held:
            with self.database.write() as connection:
                records.mark_sent(connection, _keys(self.held))

    def let_go(self) -> None:
        with self.database.read() as connection:
            ours = leases.still_held(connection, self.worker_id)
        lost = [one for one in self.held if ours.get(one.id) != one.fence]
        if lost:
            with self.database.write() as connection:
                forget_calls(connection, _keys(lost), "cancelled", "cut off")
            self._drop(lost)

    def falter(self) -> None:
        """Be taken for dead, and go on all the same."""
        lose(self.database, self.worker_id)

    def cancel(self) -> None:
        batch_id = self.rng.choice(list(self.batches))
        job_id = self.rng.choice(self.batches[batch_id])
        self.cancelled += cancel_job(self.database, job_id)

    def _drop(self, gone: list[Claimed]) -> None:
        keys = set(_keys(gone))
        self.held = [one for one in self.held if (one.id, one.fence) not in keys]


def _keys(calls: list[Claimed]) -> list[tuple[str, int]]:
    return [(one.id, one.fence) for one in calls]


def _finish(database: Database, hand: Hand) -> None:
    """Work off what is left, alone."""
    hand.worker_id = enlist(database)
    for batch_id in hand.batches:
        while not batch_of(database, batch_id).is_finished:
            taken = claim(database, hand.worker_id, **{batch_id: JOBS})
            hand.claimed += _keys(taken)
            done = put(database, *(outcome_of(one) for one in taken)).job_ids
            hand.finished += done
            hand.answers += len(done)


@pytest.mark.parametrize("seed", range(4))
def test_workers_at_once_finish_each_job_once_and_every_book_is_right(
    database: Database, seed: int
) -> None:
    batches = {one: job_ids(database, one) for one in (submit_batch(database, JOBS) for _ in "ab")}
    hands = [
        Hand(database, batches, random.Random(seed * 100 + number))  # noqa: S311  # repeatable
        for number in range(WORKERS)
    ]
    all_at_once(*(hand.work for hand in hands))
    rescue(database, NEVER_POISON)
    last = Hand(database, batches, random.Random(seed))  # noqa: S311  # as above
    _finish(database, last)
    hands.append(last)
    for hand in hands:
        hand.surely(hand.let_go)

    refused = Counter(text for hand in hands for text in hand.refusals)
    assert not refused, refused
    claimed = Counter(key for hand in hands for key in hand.claimed)
    assert set(claimed.values()) == {1}, "a fence was given to two"
    finished = Counter(job_id for hand in hands for job_id in hand.finished)
    assert set(finished.values()) <= {1}, "a job was finished twice"
    assert finished.total() + sum(hand.cancelled for hand in hands) == len(batches) * JOBS
    for batch_id in batches:
        assert_counters_match_rows(database, batch_id)
    with database.read() as connection:
        fences = connection.scalar(select(func.sum(job.c.fence)))
        found = connection.execute(select(attempt.c.job_id, attempt.c.fence, attempt.c.state)).all()
    assert len(found) == fences == len(claimed)
    assert {(row.job_id, row.fence) for row in found} == claimed.keys()
    assert {row.state for row in found} <= {AttemptState.ANSWERED, AttemptState.UNKNOWN}
    answers = sum(hand.answers for hand in hands)
    spent = sum(batch_of(database, batch_id).prompt_tokens for batch_id in batches)
    assert spent == answers * USAGE.prompt_tokens
