"""Measures workers on the main job: CPU per job, jobs/s, memory, and how busy their slots are.

    python -m ops.bench.main_job --jobs 20000 --in-flight 500 --latency 0.5
    python -m ops.bench.main_job --jobs 6000 --in-flight 1000 --latency 2 --sigma 1.164
    python -m ops.bench.main_job --jobs 2000 --chunks 200 --chunk-seconds 0.01

The second line is a heavy tail: log-normal, median 2 s, one in a hundred over 30 s. The third is of
streams. All is on loopback: the simulator, a broker and a database. With --database-url it works in
a schema of its own on that PostgreSQL, else on SQLite in a temporary folder; without --broker-url
on a Valkey of its own. It stops by itself.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ops.bench import ground
from worker import Batch, Client, Settings


def main() -> None:
    """Measure, and print one JSON object."""
    options = _options()
    behaviour = {
        "latency_seconds": options.latency,
        "latency_sigma": options.sigma,
        "answer_bytes": options.answer_bytes,
        "chunks": options.chunks,
        "chunk_seconds": options.chunk_seconds,
        "requests_per_minute": options.rpm,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        ground.simulator(**behaviour) as url,
        ground.settings(
            Path(folder),
            url,
            server=options.database_url,
            broker_url=options.broker_url,
            max_in_flight=options.in_flight // options.workers,
        ) as settings,
    ):
        print(json.dumps(_measure(settings, url, options), indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=500, help="of all workers together")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--answer-bytes", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=0, help="of a stream; 0: a plain answer")
    parser.add_argument("--chunk-seconds", type=float, default=0.0)
    parser.add_argument("--rpm", type=int, default=0, help="a limit that the headers state")
    parser.add_argument("--database-url")
    parser.add_argument("--broker-url")
    return parser.parse_args()


def _bodies(options: argparse.Namespace) -> Iterator[ground.Body]:
    more: ground.Body = {"stream": True} if options.chunks else {}
    return (ground.request(number) | more for number in range(options.jobs))


def _measure(settings: Settings, url: str, options: argparse.Namespace) -> dict[str, Any]:
    with Client(settings) as client, httpx.Client(base_url=url) as simulator:
        began = time.monotonic()
        batch = client.submit_many(_bodies(options), name="bench")
        submitted = time.monotonic() - began
        with ground.Workers.run(settings, options.workers) as workers:
            watched = _watch(client, batch, simulator, workers, options.in_flight)
            done, spent = watched.batch, workers.look()
        started = next(client.results(batch.id)).started_at
    seconds = ((done.finished_at or done.created_at) - (started or done.created_at)).total_seconds()
    return {
        "jobs": done.succeeded,
        "failed": done.failed,
        "submitted_per_second": round(options.jobs / submitted),
        "seconds": round(seconds, 2),
        "jobs_per_second": round(options.jobs / seconds, 1),
        "cpu_ms_per_job": round(spent.cpu_seconds / options.jobs * 1000, 3),
        "peak_mb": round(spent.peak_bytes / 2**20, 1),
        "while_backlog": {
            "cpu_ms_per_job": round(watched.cpu_ms_per_job, 3),
            "slots_busy": round(watched.slots_busy, 3),
        },
    }


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen while more jobs were waiting than there are slots; and the batch at its end.

    After that a tail of few long calls costs a worker little, and a job in it much.
    """

    slots_busy: float
    cpu_ms_per_job: float
    batch: Batch


def _watch(
    client: Client,
    batch: Batch,
    simulator: httpx.Client,
    workers: ground.Workers,
    slots: int,
) -> Watched:
    busy: list[float] = []
    cpu_ms = 0.0
    while not (found := client.batch(batch.id)).is_finished:
        spent = workers.look()
        in_flight = simulator.get("/_simulator/summary").json()["in_flight"]
        if found.done and found.total - found.done - slots > slots:
            busy.append(in_flight / slots)
            cpu_ms = spent.cpu_seconds / found.done * 1000
        time.sleep(0.25)
    return Watched(sum(busy) / len(busy) if busy else 0.0, cpu_ms, found)


if __name__ == "__main__":
    main()
