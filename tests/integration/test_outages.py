"""What a worker stands on goes away and comes back: nothing is lost, and two lines tell of it."""

import resource
import time
from collections import Counter
from collections.abc import Callable

import psycopg

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, WorkerProcess, digest, plain, traces
from tests.integration.servers import Gateway

AWAY_SECONDS = 6.0


def _survives(
    site: Site, worker: WorkerProcess, take_away: Callable[[], None], bring_back: Callable[[], None]
) -> None:
    """Take the database away under load for longer than any one try of it takes."""
    bodies = [plain(f"through an outage {n}" + " and on" * 200) for n in range(300)]
    batch = site.submit(bodies)
    wait_until(lambda: site.client.batch(batch.id).done >= 30, "the batch is on its way")
    take_away()
    worker.wait_told("lost", what="database")
    time.sleep(AWAY_SECONDS)  # what is tested is that nothing happens meanwhile
    bring_back()
    done = site.finished(batch)
    assert (done.succeeded, done.failed) == (300, 0)
    worker.wait_told("back", what="database")
    sent = Counter(call.body_sha256 for call in site.simulator.calls())
    assert sent == Counter(map(digest, bodies)), "answers that came meanwhile were kept"
    assert site.client.unknown_outcomes() == 0
    told = [one["event"] for one in worker.events()]
    assert (told.count("lost"), told.count("back")) == (1, 1)
    assert not traces([worker])
    assert len(told) < 8, "an outage is no storm"
    site.close()


def test_a_database_that_refuses_connections(make_site: MakeSite) -> None:
    site = make_site("postgres", latency_seconds=0.3)
    gateway = Gateway(site.base["database_url"])
    worker = site.start_worker(database_url=gateway.url, max_in_flight=16)
    _survives(site, worker, gateway.shut, gateway.open)
    gateway.close()


def test_a_database_that_becomes_read_only(make_site: MakeSite) -> None:
    """As a primary that was made a standby."""
    site = make_site("postgres", latency_seconds=0.3)
    url = site.base["database_url"].replace("+psycopg", "")
    name = url.partition("@/")[2].partition("?")[0]
    worker = site.start_worker(max_in_flight=16)

    def set_read_only(value: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(
                f"ALTER DATABASE {name} SET default_transaction_read_only = {value}".encode()
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND pid <> pg_backend_pid()",
                [name],
            )

    _survives(site, worker, lambda: set_read_only("on"), lambda: set_read_only("off"))


def test_a_disk_that_is_full(make_site: MakeSite) -> None:
    """The worker's process may write no file beyond the size that its database has already."""
    site = make_site(latency_seconds=0.3)
    worker = site.start_worker(max_in_flight=16)
    pid, unlimited = worker.process.pid, resource.RLIM_INFINITY

    def fill_up() -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (128 << 10, unlimited))

    def clear_up() -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))

    _survives(site, worker, fill_up, clear_up)
