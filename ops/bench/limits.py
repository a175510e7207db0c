"""Measures how well workers share a limit of requests a minute, which nobody has told them.

    python -m ops.bench.limits --workers 8 --per-minute 600 --minutes 5

Prints how much of the limit was used from the first call on, and what share of the calls was
answered 429 after the first ten seconds. All is on loopback, in a temporary folder, with SQLite
and a Valkey of its own unless told otherwise. It stops by itself.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ops.bench import ground
from worker import Client
from worker.simulator import Behaviour, Call, SimulatorThread

SETTLING_SECONDS = 10.0


def main() -> None:
    """Measure, and print one JSON object."""
    options = _options()
    behaviour = Behaviour(
        requests_per_minute=options.per_minute,
        max_in_flight=options.max_in_flight,
        latency_seconds=options.latency,
    )
    jobs = int(options.per_minute * (options.minutes + 2))
    with (
        tempfile.TemporaryDirectory() as folder,
        SimulatorThread(behaviour) as simulator,
        ground.settings(Path(folder), simulator.url, server=options.database_url) as settings,
        Client(settings) as client,
    ):
        client.submit_many(map(ground.request, range(jobs)))
        with ground.Workers.run(settings, options.workers):
            while not simulator.summary().calls:
                time.sleep(0.05)
            time.sleep(options.minutes * 60)
            calls = simulator.calls()
        print(json.dumps(_told(calls, options.per_minute, options.minutes), indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--per-minute", type=int, default=600)
    parser.add_argument("--max-in-flight", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--database-url")
    return parser.parse_args()


def _told(calls: Sequence[Call], per_minute: int, minutes: float) -> dict[str, float]:
    first = min(call.arrived_seconds for call in calls)
    span = [call for call in calls if call.arrived_seconds < first + minutes * 60]
    late = [call for call in span if call.arrived_seconds >= first + SETTLING_SECONDS]
    let_in = sum(call.status != 429 for call in span)
    return {
        "calls": len(span),
        "limit": per_minute * minutes,
        "used": round(let_in / (per_minute * minutes), 4),
        "refused_after_settling": round(sum(c.status == 429 for c in late) / len(late), 5),
    }


if __name__ == "__main__":
    main()
