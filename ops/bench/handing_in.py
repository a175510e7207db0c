"""Measures how fast a file is checked and stored, and how much memory that takes.

    python ops/bench/handing_in.py --lines 10000
    python ops/bench/handing_in.py --lines 1000000 --database-url postgresql://…

One process, as `chatqueue submit` is. The file and, without --database-url, a SQLite database are
in a temporary folder; a database that is given must be empty, and keeps what was stored.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from pydantic import SecretStr

from worker import Settings
from worker.batches import read_lines, submit_lines
from worker.store import schema
from worker.store.engine import Database
from worker.store.submission import NewBatch

QUESTION = "Say something about number {}. " + "The quick brown fox jumps over the lazy dog. " * 6


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--database-url")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        _write(path, options.lines)
        url = options.database_url or f"sqlite:///{Path(folder) / 'bench.db'}"
        settings = Settings.load(database_url=SecretStr(url))
        with Database(settings.sqlalchemy_url) as database:
            schema.migrate(database)
            print(json.dumps(_measure(database, path, options.lines), indent=2))


def _write(path: Path, lines: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            messages = [{"role": "user", "content": QUESTION.format(number)}]
            body = {"model": "gpt-5.1", "messages": messages}
            line = {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body}) + "\n")


def _measure(database: Database, path: Path, lines: int) -> dict[str, float]:
    before = _peak_mb()
    began, cpu = time.monotonic(), time.process_time()
    with path.open("rb") as handle:
        stored = submit_lines(database, read_lines(handle), NewBatch(path.name, "bulk")).total
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    return {
        "lines": stored,
        "lines_per_second": round(lines / seconds),
        "cpu_ms_per_line": round(cpu / lines * 1000, 4),
        "peak_mb": round(_peak_mb(), 1),
        "of_that_before": round(before, 1),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
