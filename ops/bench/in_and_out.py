"""Measures how fast a file is checked and stored and its results are written, in how much memory.

    python -m ops.bench.in_and_out --lines 10000
    python -m ops.bench.in_and_out --lines 1000000 --database-url postgresql://…

Each way in a process of its own, as `chatqueue submit` and `chatqueue results` are. Between the two
the jobs are ended by one statement, each with an answer of 1 KB. The file and, without
--database-url, a SQLite database are in a temporary folder; else it is a schema of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import update

from ops.bench import ground
from worker import Settings
from worker.batches import read_lines, submit_lines, write_results
from worker.jobs.states import BatchState, State
from worker.models import batch, job
from worker.store import schema
from worker.store.clock import from_now
from worker.store.engine import Database
from worker.store.submission import NewBatch

ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "a word " * 130}}]})


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--database-url")
    parser.add_argument("--only", nargs=3, metavar=("WAY", "FILE", "BATCH"), help="used by itself")
    options = parser.parse_args()
    if options.only:
        way, file, batch_id = options.only
        print(json.dumps(_one_way(way, options.database_url, Path(file), batch_id)))
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        ground.database(Path(folder), options.database_url) as url,
    ):
        print(json.dumps(_measure(url, Path(folder), options.lines), indent=2))


def _measure(url: str, folder: Path, lines: int) -> dict[str, float]:
    ground.write_requests(folder / "requests.jsonl", lines)
    with _database(url) as database:
        schema.migrate(database)
    went_in = _apart("in", url, folder / "requests.jsonl", "-")
    batch_id = str(went_in["batch_id"])
    with _database(url) as database:
        _end_all(database, batch_id, lines)
    came_out = _apart("out", url, folder / "results.jsonl", batch_id)
    return {
        "lines": lines,
        "lines_in_per_second": round(lines / float(went_in["seconds"])),
        "peak_mb_in": float(went_in["peak_mb"]),
        "lines_out_per_second": round(lines / float(came_out["seconds"])),
        "peak_mb_out": float(came_out["peak_mb"]),
    }


def _apart(way: str, url: str, file: Path, batch_id: str) -> dict[str, float | str]:
    words = ["--only", way, str(file), batch_id, "--database-url", url]
    command = [sys.executable, "-m", "ops.bench.in_and_out", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def _one_way(way: str, url: str, file: Path, batch_id: str) -> dict[str, float | str]:
    acts: dict[str, Callable[[Database], str]] = {
        "in": lambda database: _hand_in(database, file),
        "out": lambda database: _write_out(database, file, batch_id),
    }
    with _database(url) as database:
        began = time.monotonic()
        found = acts[way](database)
        seconds = time.monotonic() - began
    return {"batch_id": found, "seconds": seconds, "peak_mb": round(ground.peak_mb(), 1)}


def _hand_in(database: Database, file: Path) -> str:
    with file.open("rb") as handle:
        return str(submit_lines(database, read_lines(handle), NewBatch(file.name, "bulk")).batch_id)


def _write_out(database: Database, file: Path, batch_id: str) -> str:
    write_results(database, batch_id, file, file.with_suffix(".errors"))
    return batch_id


def _end_all(database: Database, batch_id: str, lines: int) -> None:
    ended = {"state": State.SUCCEEDED, "status": 200, "finished_at": from_now()}
    with database.write() as connection:
        connection.execute(
            update(job).where(job.c.batch_id == batch_id).values(response=ANSWER, **ended)
        )
        connection.execute(
            update(batch)
            .where(batch.c.id == batch_id)
            .values(state=BatchState.COMPLETED, succeeded=lines, finished_at=from_now())
        )


def _database(url: str) -> Database:
    return Database(Settings.load(database_url=SecretStr(url)).sqlalchemy_url)


if __name__ == "__main__":
    main()
