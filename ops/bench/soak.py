"""Runs a worker at full rate for long, and looks whether anything in it grows.

    python -m ops.bench.soak --minutes 30 --database-url postgresql://…

Batches follow each other, plain answers and streams by turns, one call in fifty fails; what is done
is purged. Printed are, for each minute, the memory, threads, open files and connections of the
worker, and jobs/s; the report compares the second half with the first. It stops by itself.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from ops.bench import ground
from worker import Batch, Client

BATCH_JOBS = 20_000
FAULTS = ("429", "500", "503", "reset", "cut_body", "cut_stream", "html_200")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a worker had at a moment, and what it had done since the moment before."""

    minute: float
    memory_mb: float
    threads: int
    files: int
    connections: int
    jobs_per_second: float


def main() -> None:
    """Soak, and print one JSON object per sample."""
    options = _options()
    behaviour: dict[str, Any] = {
        "latency_seconds": 0.5,
        "fail_rate": 0.02,
        "faults": FAULTS,
        "retry_after_seconds": 0.1,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        ground.simulator(**behaviour) as url,
        ground.settings(
            Path(folder), url, server=options.database_url, max_in_flight=options.in_flight
        ) as settings,
        Client(settings) as client,
        ground.Workers.run(settings) as workers,
    ):
        for one in _samples(client, workers.processes[0], options.minutes):
            print(json.dumps(asdict(one)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--database-url")
    return parser.parse_args()


def _samples(client: Client, worker: psutil.Process, minutes: float) -> Iterator[Sample]:
    began = looked = time.monotonic()
    over = began + minutes * 60
    open_: list[Batch] = []
    done = counted = handed_in = 0
    while time.monotonic() < over:
        while len(open_) < 2:  # one behind the other, so that it never runs dry
            open_.append(client.submit_many(_bodies(handed_in % 2 == 1), name=f"soak-{handed_in}"))
            handed_in += 1
        time.sleep(1)
        found = [client.batch(one.id) for one in open_]
        finished = [one for one in found if one.is_finished]
        done += sum(one.total for one in finished)
        open_ = [one for one in found if not one.is_finished]
        if finished:
            client.purge(timedelta(seconds=30))
        now = time.monotonic()
        if now - looked >= min(60.0, minutes * 6):
            so_far = done + sum(one.done for one in open_)
            yield _sample(worker, now - began, (so_far - counted) / (now - looked))
            looked, counted = now, so_far


def _bodies(stream: bool) -> Iterator[ground.Body]:  # by turns
    more: ground.Body = {"stream": True} if stream else {}
    return (ground.request(number) | more for number in range(BATCH_JOBS))


def _sample(worker: psutil.Process, seconds: float, rate: float) -> Sample:
    with worker.oneshot():
        return Sample(
            round(seconds / 60, 2),
            round(worker.memory_info().rss / 2**20, 1),
            worker.num_threads(),
            worker.num_fds(),
            len(worker.net_connections()),
            round(rate, 1),
        )


if __name__ == "__main__":
    main()
