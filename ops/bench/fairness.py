"""Measures how long whoever comes second waits: single jobs, and a small batch, beside a huge one.

    python -m ops.bench.fairness --database-url postgresql://…

First alone, then while a batch of 100,000 runs on the same worker: single jobs one after the other,
ten a second, and a batch of 100. Of single jobs it tells how long until the request has left (it is
at the simulator), and how much longer the whole took than the call itself. It stops by itself.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from ops.bench import ground
from worker import Client, Job

LATENCY_SECONDS = 0.5
SMALL = 100
SPACING_SECONDS = 0.1


def main() -> None:
    """Measure, and print one JSON object."""
    options = _options()
    with (
        tempfile.TemporaryDirectory() as folder,
        ground.simulator(ledger=True, latency_seconds=LATENCY_SECONDS) as url,
        ground.settings(
            Path(folder), url, server=options.database_url, max_in_flight=options.in_flight
        ) as settings,
        Client(settings) as client,
        ground.Workers.run(settings),
    ):
        client.wait(client.submit(ground.request(-1)).id)  # the first call opens the gate
        alone = _measured(client, url, options.singles)
        huge = client.submit_many((ground.request(n) for n in range(options.huge)), name="huge")
        while not client.batch(huge.id).done:
            time.sleep(0.1)
        behind = _measured(client, url, options.singles)
        still_on = not client.batch(huge.id).is_finished
        client.cancel(huge.id)
    times = (behind["small_batch_seconds"], alone["small_batch_seconds"])
    told = {
        "alone": alone,
        "behind": behind,
        "the_huge_batch_was_still_on": still_on,
        "small_batch_times_its_time_alone": round(times[0] / times[1], 2),
    }
    print(json.dumps(told, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--huge", type=int, default=100_000)
    parser.add_argument("--singles", type=int, default=200)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--database-url")
    return parser.parse_args()


def _measured(client: Client, url: str, singles: int) -> dict[str, Any]:
    before = httpx.get(f"{url}/_simulator/summary").json()["calls"]
    submitted: dict[str, float] = {}
    for number in range(singles):
        moment = time.time()
        submitted[client.submit(ground.request(number)).id] = moment
        time.sleep(max(0.0, SPACING_SECONDS - (time.time() - moment)))
    jobs = [client.wait(one) for one in submitted]
    arrived = _arrivals(url, before)
    leaves = [arrived[one] - moment for one, moment in submitted.items()]
    over = [_beyond_the_call(client, one) for one in jobs]
    began = time.monotonic()
    client.wait_batch(client.submit_many(map(ground.request, range(SMALL)), name="small").id)
    return {
        "until_sent_ms": _spread(leaves),
        "beyond_the_call_ms": _spread(over),
        "small_batch_seconds": round(time.monotonic() - began, 2),
    }


def _arrivals(url: str, after: int) -> dict[str, float]:
    """When each job's call arrived, in Unix time, of the calls after so many."""
    calls = httpx.get(f"{url}/_simulator/ledger", params={"after": after}, timeout=60).json()
    return {one["idempotency_key"]: one["arrived_at"] for one in calls}


def _beyond_the_call(client: Client, job: Job) -> float:
    (call,) = client.attempts(job.id)
    assert job.finished_at is not None  # noqa: S101  # it was waited for
    return (job.finished_at - job.created_at).total_seconds() - (call.seconds or 0.0)


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    parts = quantiles(seconds, n=100)
    return {
        "p50": round(median(seconds) * 1000, 1),
        "p99": round(parts[98] * 1000, 1),
        "most": round(max(seconds) * 1000, 1),
    }


if __name__ == "__main__":
    main()
