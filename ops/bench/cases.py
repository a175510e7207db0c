"""One contender on one case of the main job, in processes of their own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ops.bench import ground

OURS: Final = "chatqueue"
FLOOR: Final = "httpx-aiohttp"
CELERY: Final = ("celery-prefork", "celery-threads", "celery-gevent")
LIMIT_SECONDS: Final = 3_600

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """So many requests, as many of them in flight, and how they are answered.

    `chunks` of a stream, 0 for plain answers; `rpm`: a limit that the headers state. `workers` and
    `server` (the URL of a PostgreSQL; without one SQLite) are for chatqueue.
    """

    jobs: int = 4_000
    in_flight: int = 500
    latency: float = 0.5
    sigma: float = 0.0
    answer_bytes: int = 0
    chunks: int = 0
    chunk_seconds: float = 0.0
    rpm: int = 0
    workers: int = 1
    server: str | None = None


def measure(name: str, case: Case) -> Row:
    """Run one contender; give what it printed, or why there is nothing."""
    print(f"measuring {name}: {case.jobs} jobs, {case.in_flight} in flight", file=sys.stderr)
    try:
        return _chatqueue(case) if name == OURS else _contender(name, case)
    except subprocess.TimeoutExpired:
        return {"absent": f"not done after {LIMIT_SECONDS} s"}
    except subprocess.CalledProcessError as error:
        return {"absent": error.stderr.strip().splitlines()[-1][:80] if error.stderr else "?"}


def _chatqueue(case: Case) -> Row:
    words = [
        f"--jobs={case.jobs}",
        f"--in-flight={case.in_flight}",
        f"--latency={case.latency}",
        f"--sigma={case.sigma}",
        f"--answer-bytes={case.answer_bytes}",
        f"--chunks={case.chunks}",
        f"--chunk-seconds={case.chunk_seconds}",
        f"--rpm={case.rpm}",
        f"--workers={case.workers}",
    ]
    if case.server:
        words.append(f"--database-url={case.server}")
    return printed("main_job", words)


def _contender(name: str, case: Case) -> Row:
    behaviour: dict[str, Any] = {
        "latency_seconds": case.latency,
        "latency_sigma": case.sigma,
        "answer_bytes": case.answer_bytes,
        "chunks": case.chunks,
        "chunk_seconds": case.chunk_seconds,
    }
    with tempfile.TemporaryDirectory() as folder, ground.simulator(**behaviour) as url:
        requests = Path(folder) / "requests.jsonl"
        ground.write_requests(requests, case.jobs, stream=bool(case.chunks))
        words = [name, "--url", url, "--requests", str(requests), f"--in-flight={case.in_flight}"]
        if name not in CELERY:
            return printed("contenders", words)
        with ground.broker() as broker:
            return printed("contenders", [*words, "--broker-url", broker])


def printed(program: str, words: Sequence[str]) -> Row:
    """Run a program of this folder; give the JSON that it prints. Raises as `subprocess.run`."""
    done = subprocess.run(
        [sys.executable, "-m", f"ops.bench.{program}", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    found: Row = json.loads(done.stdout)
    return found
