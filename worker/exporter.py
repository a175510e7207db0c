"""The queue's numbers in Prometheus' form, read from SQL when they are asked for.

One exporter for the whole queue: what single workers do is theirs to tell. Labels are queues,
states and endpoints, of which there are few; nothing that a person hands in is ever one.
"""

from collections.abc import Callable, Iterator
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.errors import DatabaseError
from worker.jobs.queues import QUEUES
from worker.jobs.states import BatchState
from worker.store import gauges
from worker.store.engine import Database
from worker.store.gauges import OPEN_STATES, Gauges

log = structlog.get_logger(__name__)

_BATCH_STATES: Final = (BatchState.IN_PROGRESS, BatchState.CANCELLING)


class QueueCollector(Collector):
    """Reads the database for each scrape; where that is away, `chatqueue_database_up` is 0."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """Give all metrics."""
        up = GaugeMetricFamily("chatqueue_database_up", "Whether the database could be read.")
        try:
            with self._database.read() as connection:
                found = gauges.read(connection)
        except DatabaseError as error:
            log.warning("scrape_failed", error=str(error))
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from metrics(found)

    def describe(self) -> Iterator[Metric]:
        """Nothing is read before the first scrape."""
        return iter(())


def metrics(found: Gauges) -> Iterator[Metric]:
    """Say it in Prometheus' form. What is not there is 0, so that a graph has no holes. Pure."""
    jobs = GaugeMetricFamily("chatqueue_jobs", "Open jobs.", labels=["queue", "state"])
    for queue in QUEUES:
        for state in OPEN_STATES:
            jobs.add_metric([queue, state], found.jobs.get((queue, state), 0))
    yield jobs
    oldest = GaugeMetricFamily(
        "chatqueue_oldest_queued_age_seconds",
        "Since the oldest batch or single job with a job that nobody has begun was handed in.",
        labels=["queue"],
    )
    for queue in QUEUES:
        oldest.add_metric([queue], found.oldest_seconds.get(queue, 0.0))
    yield oldest
    batches = GaugeMetricFamily("chatqueue_batches", "Open batches.", labels=["state"])
    for batch_state in _BATCH_STATES:
        batches.add_metric([batch_state], found.batches.get(batch_state, 0))
    yield batches
    yield _single("chatqueue_workers", "Worker processes that hold a lease.", found.workers)
    yield _single(
        "chatqueue_unknown_outcomes",
        "Calls that brought no answer and may have been billed.",
        found.unknown_outcomes,
    )
    yield _single("chatqueue_paused_keys", "Keys that are used by probes only.", len(found.pauses))


def _single(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def serve(database: Database, address: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Answer scrapes until the process ends. `on_ready` is given the URL."""
    registry = CollectorRegistry()
    registry.register(QueueCollector(database))
    server, thread = start_http_server(port, address, registry)
    host = f"[{address}]" if ":" in address else address
    on_ready(f"http://{host}:{server.server_port}/metrics")
    while thread.is_alive():
        thread.join(1.0)  # not for ever: a signal would not be seen
