"""Workers whose doorbell is broken: they do the work all the same, and hear it again when it rings.

Settings of small shifts make every few jobs depend on a ring.
"""

import signal
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, digest, flush, plain, scripted, traces
from tests.integration.servers import Broker
from worker.jobs.states import State

SMALL: Final[dict[str, Any]] = {"shift_jobs": 25, "max_in_flight": 8}


def _called_once(site: Site, bodies: list[str]) -> bool:
    sent = Counter(call.body_sha256 for call in site.simulator.calls())
    return {sent[digest(body)] for body in bodies} == {1}


def test_work_goes_on_while_the_broker_is_away(make_site: MakeSite, broker: Broker) -> None:
    site = make_site(broker_url=broker.url, latency_seconds=0.05)
    worker = site.start_worker(**SMALL)
    bodies = [plain(f"unrung {n}") for n in range(400)]
    batch = site.submit(bodies)
    wait_until(lambda: site.client.batch(batch.id).done >= 30, "the batch is on its way")
    broker.kill()
    single = site.client.submit(plain("a single one"))
    assert site.finished(batch).succeeded == 400
    assert site.client.wait(single.id, 30).state is State.SUCCEEDED
    assert len(worker.told("works_unrung")) == 1
    assert not worker.told("rings_answered")

    broker.start()
    worker.wait_told("rings_answered")
    worker.wait_told("back", what="broker")
    more = [plain(f"rung again {n}") for n in range(100)]
    assert site.finished(site.submit(more)).succeeded == 100
    assert _called_once(site, bodies + more)
    # Who finds the limits away asks again five seconds later at the soonest, and only for work.
    wait_until(
        lambda: site.run([plain("and again")]) and worker.told("back", what="shared limits"),
        "the shared limits are back",
    )
    for what in ("broker", "shared limits"):
        assert len(worker.told("lost", what=what)) == len(worker.told("back", what=what)) == 1
    assert not traces([worker])
    assert len(worker.events()) < 12, "an outage is no storm"
    site.close()


def test_a_worker_that_is_started_without_a_broker_works(
    make_site: MakeSite, broker: Broker
) -> None:
    broker.kill()
    site = make_site(broker_url=broker.url)
    worker = site.begin_worker()
    assert site.finished(site.submit([plain("nobody rings")])).succeeded == 1
    broker.start()
    worker.wait_ready()
    site.close()


def test_a_broker_that_is_silent_costs_no_lease(make_site: MakeSite, broker: Broker) -> None:
    site = make_site(broker_url=broker.url, latency_seconds=0.3)
    workers = site.start_workers("first", "second", lease_seconds=3, **SMALL)
    bodies = [plain(f"silent {n}") for n in range(400)]
    batch = site.submit(bodies)
    wait_until(lambda: site.client.batch(batch.id).done >= 30, "the batch is on its way")
    broker.freeze()
    assert site.finished(batch).succeeded == 400
    assert site.client.unknown_outcomes() == 0
    assert _called_once(site, bodies)
    assert not any(worker.told("jobs_rescued") for worker in workers)
    site.close()


def test_a_shift_without_a_ring_stops_like_any_other(make_site: MakeSite, broker: Broker) -> None:
    site = make_site(broker_url=broker.url)
    worker = site.start_worker(drain_seconds=60)
    site.run([plain("the first call goes alone")])
    broker.kill()
    worker.wait_told("lost", what="broker")
    batch = site.submit([scripted("latency=5,ok", "finished"), scripted("latency=300,ok", "cut")])
    worker.wait_told("works_unrung")
    site.simulator.wait_for(lambda summary: summary.in_flight == 2, 20)
    worker.send(signal.SIGTERM)
    wait_until(lambda: site.client.batch(batch.id).done == 1, "one is finished")
    assert worker.process.poll() is None, "the other call has its time"
    worker.send(signal.SIGTERM)
    assert worker.ended(20) == 0
    assert site.client.count(batch.id)[State.QUEUED] == 1
    site.close()


def test_a_broker_that_is_emptied_again_and_again_costs_nothing(make_site: MakeSite) -> None:
    site = make_site(latency_seconds=0.05)
    worker = site.start_worker(**SMALL)
    bodies = [plain(f"emptied {n}") for n in range(400)]
    batch = site.submit(bodies)
    for share in range(1, 7):
        wait_until(lambda: site.client.batch(batch.id).done >= 50 * share, "it goes on")  # noqa: B023
        flush(site.base["broker_url"])
    assert site.finished(batch).succeeded == 400
    assert _called_once(site, bodies)
    assert not traces([worker])
    site.close()


# Runs a worker whose consumer stops consuming, behind Celery's back, when a file appears.
_DEAFENED: Final = """
import sys, threading, time
from pathlib import Path
from celery import signals
from worker.cli import main

def deafen(sender, **_):
    def wait():
        while not Path("deafen").exists():
            time.sleep(0.05)
        sender.call_soon(sender.task_consumer.cancel)
    threading.Thread(target=wait, daemon=True).start()

signals.worker_ready.connect(deafen)
sys.argv[1:1] = ["worker"]
main()
"""


def _hears_again(site: Site, folder: Path) -> None:
    program = folder / "deafened.py"
    program.write_text(_DEAFENED)
    worker = site.begin_worker("deaf", program=[str(program)], **SMALL)
    worker.wait_ready()
    assert site.finished(site.submit([plain("still hears")])).succeeded == 1
    (site.folder / "deafen").touch()
    bodies = [plain(f"unheard {n}") for n in range(300)]
    assert site.finished(site.submit(bodies)).succeeded == 300
    worker.wait_told("works_unrung")
    worker.wait_told("consumer_deaf")
    worker.wait_told("rings_answered")
    assert site.finished(site.submit([plain("hears again")])).succeeded == 1
    assert _called_once(site, bodies)
    assert len(worker.told("works_unrung")) == 1
    assert not traces([worker])
    site.close()


def test_a_consumer_that_is_deaf_is_made_to_hear_again(make_site: MakeSite, tmp_path: Path) -> None:
    _hears_again(make_site(), tmp_path)


@pytest.mark.services
def test_a_consumer_that_is_deaf_is_made_to_hear_again_on_rabbitmq(
    make_site: MakeSite, rabbitmq_service: str, tmp_path: Path
) -> None:
    _hears_again(make_site(broker_url=rabbitmq_service), tmp_path)
