"""Workers that end in the middle of their work, asked to or killed; and work called off."""

import itertools
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, digest, plain, scripted, traces
from tests.integration.servers import Broker, Gateway
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
    bodies = [plain(f"killed {n}") for n in range(400)]
    batch = site.submit(bodies)
    _wait_done(site, batch, 40)
    # More than one of them alone can have: both are at work.
    site.simulator.wait_for(lambda summary: summary.in_flight > 12, 30)
    first.send(signal.SIGKILL)
    first.ended()
    done = site.finished(batch)
    assert (done.state, done.succeeded) == (BatchState.COMPLETED, 400)
    unknown = site.client.unknown_outcomes(batch.id)
    # Those in flight, and those just answered whose record was on its way: each held a slot.
    assert 1 <= unknown <= 12
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


# --- signals --------------------------------------------------------------------------------------

TERM, INT, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


@pytest.mark.parametrize("signals", [[QUIT], [TERM, TERM], [INT, INT], [TERM, QUIT]])
def test_a_second_signal_or_a_sigquit_cuts_the_calls_at_once(
    make_site: MakeSite, signals: list[signal.Signals]
) -> None:
    site = make_site()
    worker = site.start_worker(drain_seconds=300)
    batch = site.submit([scripted("latency=120,ok", f"cut {n}") for n in range(5)])
    single = site.client.submit(scripted("latency=120,ok", "a single one"))
    site.simulator.wait_for(lambda summary: summary.in_flight == 6)
    for number in signals:
        worker.send(number)
        worker.wait_told("worker_stopping")
    assert worker.ended(20) == 0
    jobs = [*site.client.jobs(batch_id=batch.id), site.client.get(single.id)]
    assert [(job.state, job.attempts) for job in jobs] == [(State.QUEUED, 0)] * 6
    assert site.client.unknown_outcomes() == 6
    assert worker.told("calls_given_back", count=6)
    assert not worker.told("celery_left_behind")
    assert not traces([worker])
    site.close()


@pytest.mark.parametrize("number", [TERM, INT, QUIT])
def test_a_signal_before_the_worker_is_ready_stops_it_too(
    make_site: MakeSite, number: signal.Signals
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        site = make_site(broker_url=f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        worker = site.begin_worker()
        worker.wait_told("lost", what="broker")
        worker.send(number)
        assert worker.ended() == 0
    assert not worker.told("worker_ready")
    assert worker.told("worker_stopped")
    site.close()


def test_a_broker_that_is_silent_does_not_keep_a_worker_from_stopping(
    make_site: MakeSite, broker: Broker
) -> None:
    site = make_site(broker_url=broker.url)
    worker = site.start_worker(drain_seconds=300)
    batch = site.submit([scripted("latency=120,ok", "silence")])
    site.simulator.wait_for(lambda summary: summary.in_flight == 1)
    broker.freeze()
    worker.send(QUIT)
    assert worker.ended() == 0
    (job,) = site.client.jobs(batch_id=batch.id)
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    site.close()


def test_a_rolling_restart_under_load_costs_no_call_and_no_pause(make_site: MakeSite) -> None:
    site = make_site("postgres", latency_seconds=0.5)
    first, second = site.start_workers("first", "second", max_in_flight=8)
    bodies = [plain(f"rolled {n}") for n in range(800)]
    batch = site.submit(bodies)
    for old, new in ((first, "third"), (second, "fourth")):
        _wait_done(site, batch, site.client.batch(batch.id).done + 30)
        old.send(TERM)
        site.start_worker(new, max_in_flight=8)
        assert old.ended() == 0
    assert not site.client.batch(batch.id).is_finished
    done = site.finished(batch)
    assert (done.succeeded, done.failed) == (800, 0)
    assert site.client.unknown_outcomes() == 0
    calls = site.simulator.calls()
    assert Counter(call.body_sha256 for call in calls) == Counter(map(digest, bodies))
    began = sorted(call.arrived_seconds for call in calls)
    assert max(b - a for a, b in itertools.pairwise(began)) < 3
    site.close()


# --- a stop while the database is away ------------------------------------------------------------


@contextmanager
def _locked(site: Site) -> Iterator[None]:
    """Hold a SQLite database as another process's long transaction does."""
    path = site.base["database_url"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def test_an_answer_that_waits_for_the_database_is_recorded_before_a_stop(
    make_site: MakeSite,
) -> None:
    site = make_site()
    worker = site.start_worker()
    body = scripted("latency=1,ok", "answered in time")
    batch = site.submit([body])
    site.simulator.wait_for(lambda summary: summary.in_flight == 1)
    with _locked(site):
        site.simulator.wait_for(lambda summary: summary.answered == 1)
        worker.send(QUIT)
        worker.wait_told("worker_stopping")
    assert worker.ended() == 0
    (job,) = site.client.jobs(batch_id=batch.id)
    assert (job.state, job.attempts) == (State.SUCCEEDED, 1)
    assert site.client.unknown_outcomes() == 0
    assert site.calls_of(body) == 1
    site.close()


def test_a_stop_ends_while_a_sqlite_database_is_held(make_site: MakeSite) -> None:
    site = make_site()
    worker = site.start_worker(max_in_flight=3, lease_seconds=3)
    site.run([plain("the first call goes alone")])
    answered, cut = scripted("latency=4,ok", "lost"), scripted("latency=120,ok", "cut")
    batch = site.submit([answered, cut])
    site.simulator.wait_for(lambda summary: summary.in_flight == 2)
    with _locked(site):
        site.simulator.wait_for(lambda summary: summary.answered == 2, 30)
        worker.send(QUIT)
        assert worker.ended(25) == 0
    _assert_lost_and_done_again(site, worker.told("answers_lost"), batch)


def test_a_stop_ends_while_a_database_refuses_connections(make_site: MakeSite) -> None:
    site = make_site("postgres")
    gateway = Gateway(site.base["database_url"])
    worker = site.start_worker(database_url=gateway.url, max_in_flight=3, lease_seconds=3)
    site.run([plain("the first call goes alone")])
    answered, cut = scripted("latency=4,ok", "lost"), scripted("latency=120,ok", "cut")
    batch = site.submit([answered, cut])
    site.simulator.wait_for(lambda summary: summary.in_flight == 2)
    gateway.shut()
    site.simulator.wait_for(lambda summary: summary.answered == 2, 30)
    worker.send(TERM)
    worker.wait_told("worker_stopping")
    worker.send(TERM)
    assert worker.ended(25) == 0
    gateway.close()
    assert not traces([worker])
    _assert_lost_and_done_again(site, worker.told("answers_lost"), batch)


def _assert_lost_and_done_again(site: Site, told: list[dict[str, object]], batch: Batch) -> None:
    (line,) = told
    left, lost = site.client.jobs(batch_id=batch.id)
    assert line["jobs"] == [lost.id]
    assert {lost.state, left.state} == {State.RUNNING}
    site.start_worker("next", lease_seconds=3)
    site.client.wait(lost.id, 30)
    assert site.client.get(lost.id).state is State.SUCCEEDED
    assert [call.state for call in site.client.attempts(lost.id)] == ["unknown", "answered"]
    assert site.client.attempts(left.id)[0].state == "unknown"
    assert site.client.batch(batch.id).failed == 0
    site.close()


# --- a worker that was away itself ----------------------------------------------------------------


def test_a_worker_that_was_paused_beyond_its_lease_lets_go_and_works_on(
    make_site: MakeSite,
) -> None:
    site = make_site("postgres")
    first = site.start_worker("first", max_in_flight=6, lease_seconds=3)
    site.run([plain("the first call goes alone")])
    short = [scripted("latency=4,ok", f"paused short {n}") for n in range(3)]
    long = [scripted("latency=25,ok", f"paused long {n}") for n in range(3)]
    batch = site.submit([*short, *long])
    site.simulator.wait_for(lambda summary: summary.in_flight == 6, 30)
    first.send(signal.SIGSTOP)
    second = site.start_worker("second", max_in_flight=6, lease_seconds=3)
    second.wait_told("jobs_rescued")
    _wait_done(site, batch, 6)
    first.send(signal.SIGCONT)
    site.simulator.wait_for(lambda summary: summary.disconnected >= 3, 30)
    done = site.finished(batch)
    assert (done.succeeded, done.failed) == (6, 0)
    for job in site.client.jobs(batch_id=batch.id):
        old, new = site.client.attempts(job.id)
        assert (job.attempts, new.state) == (2, "answered")
        assert old.state in {"unknown", "answered"}
    after = site.submit([plain(f"after {n}") for n in range(3)])
    second.send(TERM)
    second.ended()
    assert site.finished(after).succeeded == 3
    later = site.submit([plain("only the first is left")])
    assert site.finished(later).succeeded == 1
    assert not traces([first, second])
    site.close()
