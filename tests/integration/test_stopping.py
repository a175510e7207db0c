"""Workers that end in the middle of their work, asked to or killed; and work called off."""

import signal
import time
from collections import Counter

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, digest, plain, scripted
from worker.jobs.states import BatchState, State
from worker.jobs.views import Batch


def _wait_done(site: Site, batch: Batch, count: int) -> None:
    wait_until(lambda: site.client.batch(batch.id).done >= count, f"{count} jobs are done")


def test_small_batches_are_not_stuck_behind_a_huge_one(make_site: MakeSite) -> None:
    site = make_site(latency_seconds=0.05)
    site.start_worker(max_in_flight=16)
    huge = site.submit([plain(f"huge {n}") for n in range(5_000)], "huge")
    _wait_done(site, huge, 50)
    small = site.submit([plain(f"small {n}") for n in range(100)], "small")
    assert site.finished(small).succeeded == 100
    left = site.client.batch(huge.id)
    # At half the slots each, the huge one does about as much in the meantime.
    assert left.done < 1_000
    urgent = site.client.submit_many([plain(f"urgent {n}") for n in range(50)], priority=5)
    before = site.client.batch(huge.id).done
    site.finished(urgent)
    assert site.client.batch(huge.id).done - before < 200
    site.client.cancel(huge.id)
    site.close()


def test_a_worker_that_is_asked_to_stop_finishes_its_calls_and_another_goes_on(
    make_site: MakeSite,
) -> None:
    site = make_site("postgres", latency_seconds=0.3)
    first, _ = site.start_workers("first", "second", max_in_flight=16)
    bodies = [plain(f"drained {n}") for n in range(200)]
    batch = site.submit(bodies)
    _wait_done(site, batch, 60)
    first.send(signal.SIGTERM)
    assert first.ended() == 0
    done = site.finished(batch)
    assert (done.state, done.succeeded, done.failed) == (BatchState.COMPLETED, 200, 0)
    assert site.client.unknown_outcomes() == 0
    sent = Counter(call.body_sha256 for call in site.simulator.calls())
    assert sent == Counter(map(digest, bodies))
    assert "worker_stopped" in first.log.read_text()
    site.close()


def test_calls_longer_than_the_grace_are_given_back_unburnt_and_said_to_be_unknown(
    make_site: MakeSite,
) -> None:
    site = make_site()
    worker = site.start_worker(drain_seconds=0.5)
    body = scripted("latency=60,ok", "too long")
    batch = site.submit([body])
    site.simulator.wait_for(lambda summary: summary.in_flight == 1)
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0
    assert time.monotonic() - began < 8
    (job,) = site.client.jobs(batch_id=batch.id)
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    assert site.client.unknown_outcomes(batch.id) == 1
    site.start_worker("next")
    assert site.finished(batch).succeeded == 1
    assert [call.state for call in site.client.attempts(job.id)] == ["unknown", "answered"]
    site.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_jobs_of_a_killed_worker_are_taken_over_when_its_lease_ends(
    make_site: MakeSite, kind: str
) -> None:
    site = make_site(kind, latency_seconds=0.4)
    first, second = site.start_workers("first", "second", max_in_flight=12, lease_seconds=3)
    bodies = [plain(f"killed {n}") for n in range(150)]
    batch = site.submit(bodies)
    _wait_done(site, batch, 40)
    first.send(signal.SIGKILL)
    first.ended()
    done = site.finished(batch)
    assert (done.state, done.succeeded) == (BatchState.COMPLETED, 150)
    unknown = site.client.unknown_outcomes(batch.id)
    # Those in flight, and those just answered whose record was on its way.
    assert 1 <= unknown <= 2 * 12
    sent = Counter(call.body_sha256 for call in site.simulator.calls())
    assert set(sent) == set(map(digest, bodies))
    # Nothing else was called again, and the books say so.
    assert sum(sent.values()) <= len(bodies) + unknown
    assert max(sent.values()) <= 2
    assert "jobs_rescued" in second.log.read_text()
    site.close()


def test_a_job_that_was_in_flight_with_every_worker_that_died_fails_as_poison(
    make_site: MakeSite,
) -> None:
    site = make_site()
    job = site.client.submit(scripted("latency=60", "poison"))
    worker = site.start_worker(lease_seconds=3, max_attempts=1)
    site.simulator.wait_for(lambda summary: summary.in_flight == 1)
    worker.send(signal.SIGKILL)
    worker.ended()
    site.start_worker("next", lease_seconds=3, max_attempts=1)
    failed = site.client.wait(job.id, 20)
    assert (failed.state, failed.error_code) == (State.FAILED, "poison")
    assert site.simulator.summary().calls == 1
    site.close()


def test_a_cancelled_batch_stops_its_calls_and_keeps_its_answers(make_site: MakeSite) -> None:
    site = make_site()
    worker = site.start_worker(max_in_flight=20)
    short = [plain(f"short {n}") for n in range(30)]
    long = [scripted("latency=60", f"long {n}") for n in range(100)]
    batch = site.submit([*short, *long])
    _wait_done(site, batch, 30)
    site.simulator.wait_for(lambda summary: summary.in_flight == 20)
    # Single jobs have slots of their own.
    single = site.client.submit(plain("single beside them"))
    assert site.client.wait(single.id, 10).state is State.SUCCEEDED

    assert site.client.cancel(batch.id) == 100
    site.simulator.wait_for(lambda summary: summary.disconnected == 20, timeout_seconds=4)

    cancelled = site.client.batch(batch.id)
    assert (cancelled.state, cancelled.succeeded) == (BatchState.CANCELLED, 30)
    assert cancelled.cancelled == 100
    answered = [job for job in site.client.results(batch.id) if job.state is State.SUCCEEDED]
    assert len(answered) == 30
    wait_until(lambda: site.client.unknown_outcomes(batch.id) == 20, "the ledger says so", 5)
    again = site.client.submit(plain("the worker lives"))
    assert site.client.wait(again.id, 10).state is State.SUCCEEDED
    assert site.simulator.summary().calls == 30 + 20 + 2
    assert "calls_let_go" in worker.log.read_text()
    site.close()
